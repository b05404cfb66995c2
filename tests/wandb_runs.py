"""W&B kept offline, and its runs read back with W&B's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import environment


def isolate(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep W&B away from this machine's login and cache."""
    for name in ("CONFIG", "CACHE", "DATA"):
        patch.setenv(f"WANDB_{name}_DIR", str(folder / name.lower()))
    patch.setenv("NETRC", str(folder / "no-netrc"))
    for name in ("API_KEY", "MODE", "DIR", "BASE_URL", "PROJECT", "ENTITY", "RUN_GROUP", "TAGS"):
        patch.delenv(f"WANDB_{name}", raising=False)


def runs_in(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("*run-*"))


def read(folder: Path) -> dict[str, list[Any]]:
    """Return the records of an offline run by type."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, list[Any]] = {}
    for line in done.stdout.splitlines():
        entry = json.loads(line)
        found.setdefault(entry["type"], []).append(entry[entry["type"]])
    return found


def summary(records: dict[str, list[Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for entry in records["summary"]:
        merged |= entry.get("update", {})
    return merged


def history(records: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [entry["item"] for entry in records["history"]]
