"""What is measured: settings (networks and samples) times methods (estimators with options)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

WARMUPS = ("none", "bn_stats", "bn_exact")  # the last is that of the base setting
PAPER_PROBES = 10


@dataclass(frozen=True)
class Study:
    """What all cells of a study have in common."""

    dataset_root: str | None
    model: str
    samples_per_class: int
    sizes: tuple[int, ...]
    reference_per_class: int
    warmup_batches: int
    temperatures: tuple[float, ...]
    draws: tuple[int, ...]
    probes: tuple[int, ...]
    device: str = "cpu"


@dataclass(frozen=True)
class Setting:
    """A network and samples: what a curvature diagonal is a function of."""

    seed: int
    warmup: str
    temperature: float
    per_class: int


@dataclass(frozen=True)
class Method:
    """An estimator of :func:`pai.curvature_diagonal` with its options."""

    estimator: Any
    options: tuple[tuple[str, int | str], ...] = ()


EXACT = Method("exact_ggn")


def hutchinson(num_probes: int, matrix: str, batch_size: int | None = None) -> Method:
    """Return Hutchinson's estimator; without a batch size, on batches as they come."""
    options: tuple[tuple[str, int | str], ...] = (("matrix", matrix), ("num_probes", num_probes))
    return Method("hutchinson", options + ((("batch_size", batch_size),) if batch_size else ()))


def base_setting(study: Study, seed: int) -> Setting:
    """Return the setting that every part varies in one respect."""
    return Setting(seed, WARMUPS[-1], study.temperatures[0], study.samples_per_class)


def cells(study: Study, seed: int) -> Iterator[tuple[str, Setting, Method]]:
    """Yield the measurements of one seed, each with the part of the study that it belongs to."""
    usual = max((k for k in study.probes if k <= PAPER_PROBES), default=min(study.probes))
    first = [EXACT, Method("empirical_fisher")]
    draws = [Method("mc_fisher", (("num_draws", k),)) for k in study.draws]
    probes = [hutchinson(k, matrix) for matrix in ("gauss_newton", "hessian") for k in study.probes]
    single = [hutchinson(k, "hessian", batch_size=1) for k in study.probes if k <= usual]
    few = [*first, draws[0], hutchinson(usual, "gauss_newton"), hutchinson(usual, "hessian")]
    base = base_setting(study, seed)
    yield from (("base", base, method) for method in [*first, *draws, *probes, *single])
    for size in study.sizes:
        if size != base.per_class:
            yield from (("samples", replace(base, per_class=size), method) for method in few)
    for warmup in WARMUPS:
        for temperature in study.temperatures:
            setting = replace(base, warmup=warmup, temperature=temperature)
            papers = warmup == "bn_stats" and temperature == study.temperatures[-1]
            if setting != base:
                chosen = [*few, *single[-1:]] if papers else few
                yield from (("conditions", setting, method) for method in chosen)


def cell_file(out: Path, setting: Setting, method: Method) -> Path:
    """Return where a cell is stored."""
    parts = [
        f"seed{setting.seed}", setting.warmup, f"T{setting.temperature:g}",
        f"n{setting.per_class}", method.estimator,
        *(f"{key}={value}" for key, value in method.options),
    ]  # fmt: skip
    return out / "cells" / ("-".join(parts) + ".json")
