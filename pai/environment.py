"""Where a run happened: versions, device, source revision."""

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pai.identity import value_at
from pai.version import __version__

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "hydra-core",
    "numpy",
    "wandb",
    "transformers",
    "tokenizers",
)
# What can change the numbers of a run, beside its configuration.
_DECISIVE = {
    "commit": ("git_sha",), "uncommitted changes": ("git_dirty",), "torch": ("packages", "torch"),
    "device": ("device",), "device name": ("device_name",), "threads": ("threads",),
    "processes": ("processes",),
}  # fmt: skip

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions, processor or GPU, thread count, git SHA and dirty flag for the record."""
    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"pai": __version__} | {name: _version(name) for name in _PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else _processor(),
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
        **_git(),
    }


def earlier_environments(
    earlier: Mapping[str, Any], environment: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Return the environments of the parts of a run that lie in the record ``earlier``.

    Each once, in their order, without ``environment``, that of the part which follows.
    """
    found: list[Mapping[str, Any]] = []
    for one in (*earlier.get("earlier_environments", ()), earlier.get("environment")):
        if one and one != environment and one not in found:
            found.append(one)
    return found


def decisive_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return in words what can change a run's numbers and is not in ``after`` as in ``before``.

    What ``before``, of an older record, does not say is not compared.
    """
    told = []
    for name, path in _DECISIVE.items():
        old, new = value_at(before, path, ...), value_at(after, path, ...)
        if old != new and old is not ...:
            told.append(f"{name} {old}, now {new}")
    return told


def reset_peak_memory(device: torch.device) -> None:
    """Let :func:`peak_memory_gib` begin anew, so that a job does not tell an earlier job's peak.

    On a CPU only Linux can; elsewhere the peak remains that of the process so far.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists() and os.access(_CLEAR, os.W_OK):
        _CLEAR.write_text("5")  # VmHWM, the peak, begins again at VmRSS


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak since :func:`reset_peak_memory`.

    On a GPU that is the memory of tensors, on a CPU all memory of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if _STATUS.exists():
        (line,) = (one for one in _STATUS.read_text().splitlines() if one.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def note_peak_memory(record: dict[str, Any], device: torch.device) -> None:
    """Raise ``peak_memory_gib`` in a run's record to the peak of this part of it, if higher."""
    record["peak_memory_gib"] = max(record["peak_memory_gib"] or 0.0, peak_memory_gib(device))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any]:
    """Return the revision of pai's own checkout; nothing for an installed package."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return {"git_sha": None, "git_dirty": None}

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain")
    return {
        "git_sha": git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
    }
