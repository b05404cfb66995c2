"""The runs that count: completed, with a result, each once. What is kept out has its reason."""

import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pai.reports.collect import LeftOut, Run
from pai.reports.reached import reached

Place = TypeVar("Place", bound=Hashable)


@dataclass(frozen=True)
class Cell:
    """The runs of one row and column, one per seed."""

    runs: Mapping[int, Run]
    metric: str

    @cached_property
    def values(self) -> dict[int, float]:
        """The metric by seed."""
        found = {seed: run.metric(self.metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in sorted(found.items()) if value is not None}

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds (``n - 1``); ``None`` for one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def reached(self) -> float | None:
        """Mean over the seeds of the sparsity that the masks have, where it is known of all."""
        found = [reached(run) for run in self.runs.values()]
        known = [sparsity for sparsity in found if sparsity is not None]
        return statistics.fmean(known) if len(known) == len(found) else None

    @property
    def collapsed(self) -> int:
        """How many layers lost every weight, summed over the seeds."""
        return sum(
            len(run.part("mask").get("collapsed_layers") or ()) for run in self.runs.values()
        )


def usable(runs: Iterable[Run], metric: str) -> tuple[list[Run], list[LeftOut]]:
    """Return the completed runs that have ``metric``, and the others."""
    counted, left_out = [], []
    for run in runs:
        status, error = run.record["status"], run.record.get("error")
        if status == "completed" and run.metric(metric) is not None:
            counted.append(run)
        elif status == "completed":
            left_out.append(LeftOut(run.folder, f"{metric} is not a finite number", run))
        else:
            reason = f"{status}: {' '.join(str(error).split())}" if error else str(status)
            if status == "running":
                reason += f" (or killed) since {run.record.get('started_at')}"
            left_out.append(LeftOut(run.folder, reason, run))
    return counted, left_out


def one_each(
    groups: Mapping[Place, Sequence[Run]], metric: str
) -> tuple[dict[Place, Run], list[LeftOut]]:
    """Return one run for each place, and those that are kept out as copies.

    Of runs for the same place the first counts if all agree in metric and mask, and else none.
    """
    found: dict[Place, Run] = {}
    left_out: dict[Path, LeftOut] = {}
    for place, group in groups.items():
        results = {(run.metric(metric), run.part("mask").get("sha256")) for run in group}
        if len(results) == 1:
            found[place], *out = group
            reason = f"duplicate of {found[place].folder}, same result"
        else:
            out, names = [*group], ", ".join(str(run.folder) for run in group)
            reason = f"duplicate with another result; of these none is used: {names}"
        for run in out:
            left_out[run.folder] = LeftOut(run.folder, reason, run)
    return found, list(left_out.values())
