"""Synthetic records of runs, as a sweep would leave them."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pai.records import write_record
from pai.reports.collect import collect
from pai.reports.grid import Grid, Layout, build_grid

SCORERS = {
    "none": "pai.scorers.dense.Dense", "random": "pai.scorers.random.Random",
    "snip": "pai.scorers.factors.gradient_scorer", "hts": "pai.scorers.factors.hutchinson_scorer",
    "synflow": "pai.scorers.synflow.SynFlow",
}  # fmt: skip
HOSTILE = r"a_b&c%d$e#f{g}h~i^j\k<l>|`m`"
LAYERS = (("conv1.weight", 100), ("conv2.weight", 300), ("conv3.weight", 600))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` merged in, nested; a value of ``...`` removes the key."""
    result = dict(copy.deepcopy(dict(base)))
    for key, value in changes.items():
        if value is ...:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def record(
    scorer: str = "snip", sparsity: float = 0.9, seed: int = 0, accuracy: float | None = 0.5,
    warmup: str = "bn_stats", **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the record of a completed run; ``changes`` are merged in last."""
    removed = 0.0 if scorer == "none" else sparsity
    schedule = "exponential" if scorer == "synflow" else "oneshot"
    kept = {name: round(total * (1 - removed)) for name, total in LAYERS}
    whole: dict[str, Any] = {
        "status": "completed", "error": None, "name": f"scorer={scorer},sparsity={sparsity}",
        "started_at": "2026-11-23T12:00:00+00:00", "ended_at": "2026-11-23T12:01:00+00:00",
        "choices": {"dataset": "digits", "scorer": scorer, "warmup": warmup, "schedule": schedule},
        "seed": seed,
        "config": {
            "dataset": {"_target_": "pai.data.digits.Digits", "image_size": 8},
            "scorer": {"_target_": SCORERS.get(scorer, "mine.Own")},
            "warmup": {"_target_": "pai.warmup.BatchNormWarmup", "kind": warmup},
            "schedule": {"_target_": "pai.masking.schedule.OneShot"} if schedule == "oneshot"
            else {"_target_": "pai.masking.schedule.Exponential", "rounds": 100},
            "training": {"epochs": 3, "optimizer": {"lr": 0.05}},
            "logger": {"_target_": "pai.tracking.none.NoTracker"},
            "scoring": {"samples_per_class": 10, "memory_gib": None, "cache_dir": "there"},
            "sparsity": sparsity, "scope": "global", "seed": seed, "device": "auto",
        },
        "scoring": {"cached": False, "cache": []},
        "metrics": {"test_accuracy": accuracy, "test_loss": 1.0, "best_val_accuracy": accuracy},
        "history": [{"epoch": 1, "val_accuracy": 0.1}],
        "mask": {
            "sparsity": removed, "kept": sum(kept.values()), "prunable": 1000,
            "collapsed_layers": [], "sha256": f"{scorer}{sparsity}{seed}",
            "layers": [
                {"name": name, "shape": [total], "total": total, "kept": kept[name],
                 "density": kept[name] / total, "effective_kept": None}
                for name, total in LAYERS
            ],
        },
        "timing_s": {"score": 0.0 if scorer == "none" else 2.0, "train": 3.0, "total": 6.0},
        "environment": {
            "device_name": "a processor", "git_sha": "abc", "git_dirty": False,
            "packages": {"torch": "2.15.0"},
        },
    }  # fmt: skip
    return merged(whole, changes)


def write(root: Path, *records: Mapping[str, Any]) -> Path:
    """Write each record into a folder of its own below ``root`` (``run0``, ``run1``, ...)."""
    for entry in records:
        folder = root / f"run{sum(1 for _ in root.glob('run*'))}"
        folder.mkdir(parents=True)
        write_record(folder, dict(entry))
    return root


def grid(folder: Path, *records: Mapping[str, Any], **layout: Any) -> Grid:
    """Return the table of ``records``, which are written into ``folder``."""
    return build_grid(collect(write(folder, *records)), Layout(**layout))


def small_sweep() -> list[dict[str, Any]]:
    """Return a reference, two scorers ahead of each other by turns at 0.9, one that collapses.

    At 0.98 one scorer has a single seed and one none.
    """
    return [
        *(record("none", 0.0, s, 0.99) for s in (0, 1)),
        record("hts", 0.9, 0, 0.90), record("hts", 0.9, 1, 0.94),
        record("snip", 0.9, 0, 0.91), record("snip", 0.9, 1, 0.92),
        record("random", 0.9, 0, 0.50), record("random", 0.9, 1, 0.50),
        record("random", 0.98, 0, 0.10, mask={"collapsed_layers": ["a", "b"]}),
        record("random", 0.98, 1, 0.20, mask={"collapsed_layers": ["a"]}),
        record("hts", 0.98, 1, 0.5, mask={"collapsed_layers": ["a"]}),
    ]  # fmt: skip
