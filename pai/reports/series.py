"""The numbers behind the figures."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pai.records import HISTOGRAM_FILE
from pai.reports.collect import Collection, Run
from pai.reports.grid import Grid, Row
from pai.reports.style import PRUNED_LATER, Style, style


def styles(grid: Grid) -> dict[tuple[Any, ...], Style]:
    """Return the style of every row."""
    chosen = {row.key: PRUNED_LATER for row in grid.rows if row.reference}
    seen: dict[str, int] = {}
    position = grid.layout.rows.index("scorer") if "scorer" in grid.layout.rows else 0
    for row in sorted((row for row in grid.rows if not row.reference), key=lambda row: row.label):
        name = str(row.key[position])
        chosen[row.key] = style(name, variant=seen.get(name, 0))
        seen[name] = seen.get(name, 0) + 1
    return chosen


def row_runs(grid: Grid, row: Row) -> list[Run]:
    """Return the runs of a row."""
    cells = [
        grid.cells[row.key, column] for column in grid.columns if (row.key, column) in grid.cells
    ]
    return [run for cell in cells for run in cell.runs.values()]


def scoring_seconds(collection: Collection) -> dict[Path, float | None]:
    """Return for each run how long its scores took to compute, in seconds.

    Scores from the cache took as long as they did in the run that computed them; ``None`` if that
    run is not in the collection, or the run had nothing to score.
    """
    computed: dict[str, float] = {}
    for run in collection.runs:
        seconds = run.part("timing_s").get("score")
        for entry in _entries(run):
            if not entry["hit"] and seconds is not None:
                computed[entry["key"]] = float(seconds)
    found: dict[Path, float | None] = {}
    for run in collection.runs:
        entries, own = _entries(run), run.part("timing_s").get("score")
        if run.dense or own is None:
            found[run.folder] = None
        elif any(entry["hit"] for entry in entries):
            times = [computed.get(entry["key"]) for entry in entries]
            known = [time for time in times if time is not None]
            found[run.folder] = max(known) if len(known) == len(times) else None
        else:
            found[run.folder] = float(own)
    return found


def _entries(run: Run) -> list[dict[str, Any]]:
    return [e for e in run.part("scoring").get("cache") or () if isinstance(e, dict) and "key" in e]


def densities(collection: Collection, runs: Sequence[Run]) -> tuple[list[str], list[float]]:
    """Return names and densities of the layers, in the order of the network, mean over ``runs``.

    Raises:
        ValueError: the runs have different layers.
    """
    tables = [collection.layers_by_run[str(run.folder)] for run in runs]
    found = [(table["name"].tolist(), table["density"].tolist()) for table in tables]
    names = found[0][0]
    if any(other != names for other, _ in found):
        raise ValueError("the runs have different layers")
    return names, [statistics.fmean(values) for values in zip(*(d for _, d in found), strict=True)]


@dataclass(frozen=True)
class Histogram:
    """Counts of scores of the whole network by bin of ``log10 |score|``."""

    per_decade: int
    positive: Mapping[int, int]
    negative: Mapping[int, int]
    zeros: int
    total: int

    def cut(self, sparsity: float) -> float | None:
        """Return ``log10`` of the score below which ``sparsity`` of all scores lie.

        It is the lower edge of the bin where the cut is, so exact to one bin. ``None`` if the cut
        is not among the positive scores.
        """
        remaining = round((1 - sparsity) * self.total)
        for bin_ in sorted(self.positive, reverse=True):
            remaining -= self.positive[bin_]
            if remaining <= 0:
                return bin_ / self.per_decade
        return None


def read_histogram(run: Run) -> Histogram | None:
    """Return the histogram that a run has left behind, or ``None``: an older or a dense run."""
    path = run.folder / HISTOGRAM_FILE
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    layers = content["layers"]

    def total(sign: str) -> dict[int, int]:
        counts: dict[int, int] = {}
        for layer in layers:
            for offset, count in enumerate(layer[sign]["counts"]):
                bin_ = layer[sign]["first"] + offset
                counts[bin_] = counts.get(bin_, 0) + count
        return counts

    return Histogram(
        per_decade=content["bins_per_decade"], positive=total("positive"),
        negative=total("negative"), zeros=sum(layer["zeros"] for layer in layers),
        total=sum(layer["total"] for layer in layers),
    )  # fmt: skip
