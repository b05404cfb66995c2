"""Layer collapse: which layers are empty, where the network is cut, and from which sparsity on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pai.masking.effective import Connectivity
from pai.plan import prepare
from pai.reports.collect import Run
from pai.reports.numbers import share
from studies.stored import Stored, check_one_study, masks, scheduled, stored_scores

VARIED = ("model", "warmup", "scorer")


@dataclass(frozen=True)
class Row:
    """One mask.

    Attributes:
        subject: model, warmup and scorer.
        seed: of the run.
        sparsity: asked for.
        effective_density: effective weights over prunable weights.
        empty: layers without a weight.
        dead: layers with weights, none of which is on a path from input to output.
        cut_at: the layer that cuts the network, or ``None``.
        density: weights kept, by layer.
    """

    subject: tuple[str, str, str]
    seed: int
    sparsity: float
    effective_density: float
    empty: tuple[str, ...]
    dead: tuple[str, ...]
    cut_at: str | None
    density: Mapping[str, float]


@dataclass(frozen=True)
class Onset:
    """The layer of a run that is empty first, and from which sparsity on; 1: none ever is."""

    subject: tuple[str, str, str]
    seed: int
    layer: str
    sparsity: float


def empty_from(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the sparsity from which on each layer is empty when all layers compete; 1: never.

    A layer keeps a weight as long as its best one is among those kept, so it is empty once no more
    weights are kept than there are higher scores elsewhere:
    ``#{scores <= max of the layer} / #scores``. Where other layers have scores equal to that
    maximum, it may be empty a little earlier.
    """
    everything = np.sort(np.concatenate([s.numpy().ravel() for s in scores.values()]))
    return {
        name: int(np.searchsorted(everything, s.numpy().max(), side="right")) / len(everything)
        for name, s in scores.items()
    }


def describe(
    subject: tuple[str, str, str], seed: int, sparsity: float, mask: Mapping[str, Tensor],
    network: Connectivity,
) -> Row:  # fmt: skip
    """Return what becomes of the network with ``mask``."""
    paths = network.paths(mask)
    kept = {name: int(keep.sum()) for name, keep in mask.items()}
    effective = {name: int(keep.sum()) for name, keep in paths.effective.items()}
    return Row(
        subject, seed, sparsity,
        effective_density=sum(effective.values()) / sum(keep.numel() for keep in mask.values()),
        empty=tuple(name for name in mask if kept[name] == 0),
        dead=tuple(name for name in mask if kept[name] and not effective[name]),
        cut_at=paths.cut_at,
        density={name: kept[name] / keep.numel() for name, keep in mask.items()},
    )  # fmt: skip


def subject_of(run: Run) -> tuple[str, str, str]:
    """Return model, warmup and scorer of a run by the names of their YAML files."""
    return run.choice("model"), run.choice("warmup"), run.choice("scorer")


def measure(stored: Stored, sparsities: Sequence[float]) -> tuple[list[Row], list[Onset]]:
    """Return a row per run and sparsity, and the first empty layer of each one-shot run.

    Raises:
        ConfigError: runs differ in more than the study varies, or scores are not stored.
    """
    runs, layers = stored.runs, stored.layers
    check_one_study([run for run in runs if not scheduled(run)], VARIED)
    check_one_study(runs, (*VARIED, "sparsity"))
    rows, onsets = [], []
    for model in dict.fromkeys(run.choice("model") for run in runs):
        of_model = [run for run in runs if run.choice("model") == model]
        plan = prepare(of_model[0].part("config"))
        network = Connectivity(plan.build_model(), plan.spec.inputs()[:1])
        for run in of_model:
            names = layers[str(run.folder)]
            rows += [
                describe(subject_of(run), run.seed, sparsity, mask, network)
                for sparsity, mask in masks(run, names, sparsities)
            ]
            if not scheduled(run):
                since = empty_from(stored_scores(run, names))
                first = min(since, key=lambda name: since[name])
                onsets.append(Onset(subject_of(run), run.seed, first, since[first]))
    return rows, onsets


def subjects(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Yield what the rows are about, scorers together, in the order of the tables."""
    order = ("magnitude", "snip", "grasp", "synflow", "fts", "hts", "gts")
    rank = {scorer: number for number, scorer in enumerate(order)}
    warmups = {"none": 0}
    found = {row.subject for row in rows}
    yield from sorted(
        found, key=lambda s: (s[0], warmups.get(s[1], 1), rank.get(s[2], len(rank)), s[2])
    )


def onset_table(rows: Sequence[Row], onsets: Sequence[Onset]) -> str:
    """Return Markdown: the sparsity of the first empty layer, and from where the network is cut."""
    lines = [
        "| model | warmup | scorer | first empty layer | empty from sparsity | network cut from |",
        "|---|---|---|---|---|---|",
    ]
    for subject in subjects(rows):
        own = [row for row in rows if row.subject == subject]
        found = [onset for onset in onsets if onset.subject == subject]
        if found:
            layers = _names(o.layer for o in found if o.sparsity < 1)
            span = _span([o.sparsity for o in found])
        else:
            layers, span = _first_on_grid(own)
        lines.append("| " + " | ".join([*subject, layers, span, _cut(own)]) + " |")
    return "\n".join(lines)


def count_table(rows: Sequence[Row]) -> str:
    """Return Markdown: layers without an effective weight by sparsity, mean over seeds."""
    grid = sorted({row.sparsity for row in rows})
    lines = [
        "| model | warmup | scorer | layers | " + " | ".join(f"{s:g}" for s in grid) + " |",
        "|" + "---|" * (4 + len(grid)),
    ]
    for subject in subjects(rows):
        own = [row for row in rows if row.subject == subject]
        cells = []
        for sparsity in grid:
            here = [row for row in own if row.sparsity == sparsity]
            lost = [len(row.empty) + len(row.dead) for row in here]
            cut = sum(row.cut_at is not None for row in here)
            told = f" (cut: {cut} of {len(here)})" if cut else ""
            cells.append(f"{sum(lost) / len(lost):.1f}{told}" if here else "")
        count = str(len(own[0].density))
        lines.append("| " + " | ".join([*subject, count, *cells]) + " |")
    return "\n".join(lines)


def _names(layers: Iterator[str]) -> str:
    short = [layer.removesuffix(".weight") for layer in layers]
    return ", ".join(f"`{name}`" for name in dict.fromkeys(short))


def _span(values: Sequence[float]) -> str:
    """Return the smallest and the largest onset; 1 is never, and nothing below it is shown as 1."""
    ends = (min(values), max(values))
    low, high = ("never" if value == 1 else share(value, 4) for value in ends)
    return low if low == high else f"{low}-{high}"


def _first_on_grid(rows: Sequence[Row]) -> tuple[str, str]:
    """Return layer and lowest tested sparsity of masks that know no other sparsity."""
    empty = sorted((row.sparsity, name) for row in rows for name in row.empty)
    if not empty:
        return "", f"none up to {max(row.sparsity for row in rows):g}"
    lowest = empty[0][0]
    return _names(name for sparsity, name in empty if sparsity == lowest), f"tested: {lowest:g}"


def _cut(rows: Sequence[Row]) -> str:
    """Return the lowest sparsity at which a seed is cut, how many are, and by which layers."""
    cut = sorted((row.sparsity, row.cut_at) for row in rows if row.cut_at is not None)
    if not cut:
        return f"none up to {max(row.sparsity for row in rows):g}"
    lowest = cut[0][0]
    layers = [layer for sparsity, layer in cut if sparsity == lowest]
    seeds = sum(row.sparsity == lowest for row in rows)
    return f"{lowest:g} ({len(layers)} of {seeds}; {_names(iter(layers))})"
