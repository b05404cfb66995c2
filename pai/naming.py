"""Names made from overrides."""

import hashlib
import re
from collections.abc import Sequence

from pai.console import OBEYED

_LONGEST = 180
_LONGEST_TITLE = 120


def folder_name(overrides: str) -> str:
    """Return ``overrides`` (``a=1,b=2``) as one folder name: bounded length, unique.

    It has no slashes and no characters that a terminal obeys.
    """
    name = re.sub(r"[/\\]", "_", OBEYED.sub("_", overrides)) or "default"
    if len(name.encode()) <= _LONGEST and name == overrides:
        return name
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:8]
    short = name.encode()[:_LONGEST].decode(errors="ignore")
    return f"{short}-{digest}" if overrides else name


def run_name(scorer: str, sparsity: float, seed: int, overrides: Sequence[str]) -> str:
    """Return what a run is called where people look at many: ``hts-0.95-s0``.

    Overrides of anything else than these three and the logger follow, the last part of each key.
    """
    names = [scorer, f"{sparsity:g}", f"s{seed}"]
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        if key.split(".")[0].split("/")[0] not in (
            "scorer",
            "sparsity",
            "seed",
            "logger",
            "experiment",
        ) or key.startswith("scorer."):
            names.append(f"{key.rpartition('.')[2]}={value}" if "." in key else value or key)
    return "-".join(names)[:_LONGEST_TITLE]
