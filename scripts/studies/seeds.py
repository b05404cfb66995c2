"""How much masks and accuracy vary with one kind of seed while the others are fixed."""

import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pai.errors import ConfigError
from pai.reports.collect import Run
from pai.reports.compare import Pair, compare
from studies.interval import Interval
from studies.stored import METRIC, SEEDS, Stored, check_one_study, masks

PARTS = ("initialization", "data", "probes")
VARIED = ("scorer", *SEEDS)
OPTIONS = ("scorer.num_probes", "scorer.num_draws", "scorer.batch_size")
_TAIL = 0.025
_EXACT, _RESAMPLES = 6, 20_000


@dataclass(frozen=True)
class Agreement:
    """How alike the masks of one setting are that differ in one kind of seed.

    Attributes:
        part: the kind of seed.
        scorer: its name.
        options: of the scorer that its YAML file does not have as a choice (probes, draws).
        sparsity: of the masks.
        seeds: how many.
        iou: intersection over union.
        by_chance: IoU of random masks with the same layer budgets, mean over pairs.
        distance: between the layer budgets (:class:`pai.reports.compare.Pair`).
    """

    part: str
    scorer: str
    options: Mapping[str, int]
    sparsity: float
    seeds: int
    iou: Interval
    by_chance: float
    distance: Interval


def spread(values: Mapping[tuple[int, int], float]) -> Interval:
    """Return the mean over pairs of seeds and its percentile bootstrap interval.

    Pairs that share a seed are not independent, so seeds are resampled, not pairs: every resample
    of the n seeds (all ``n^n`` up to n = 6, else 20,000 of a fixed stream) has the mean over its
    pairs of different seeds, as often as they are in it; resamples of one seed only are left out.

    Args:
        values: by pair ``(i, j)``, ``i < j``, of seeds ``0 .. n-1``; all pairs.
    """
    count = 1 + max(j for _, j in values)
    resamples: Iterable[Sequence[int]] = itertools.product(range(count), repeat=count)
    if count > _EXACT:
        resamples = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count)).tolist()
    means = []
    for drawn in resamples:
        pairs = [tuple(sorted(p)) for p in itertools.combinations(drawn, 2) if p[0] != p[1]]
        if pairs:
            means.append(statistics.fmean(values[i, j] for i, j in pairs))
    means.sort()
    low, high = (means[round(tail * (len(means) - 1))] for tail in (_TAIL, 1 - _TAIL))
    return Interval(statistics.fmean(values.values()), low, high)


def varied(run: Run) -> tuple[str, int]:
    """Return which kind of seed the run sets apart from its ``seed``, and to what.

    Raises:
        ConfigError: none or several.
    """
    own = run.part("config").get("seeds") or {}
    found = [(part, value) for part, value in own.items() if value is not None]
    if len(found) != 1:
        raise ConfigError(f"{run.folder}: sets {len(found)} of seeds.{'|'.join(PARTS)}, not one")
    return found[0]


def options(run: Run) -> dict[str, int]:
    """Return the numbers of probes or draws, and of samples per probe, where there are any."""
    scorer = run.part("config")["scorer"]
    names = (key.removeprefix("scorer.") for key in OPTIONS)
    return {name: scorer[name] for name in names if name in scorer}


def _check(runs: Sequence[Run], keys: Sequence[str] = ()) -> None:
    """Check that ``runs`` differ in nothing but scorer, kinds of seeds and ``keys``."""
    check_one_study(runs, (*VARIED, *keys))
    seeds = sorted({run.seed for run in runs})
    if len(seeds) > 1:
        raise ConfigError(
            f"seed: the runs have {', '.join(map(str, seeds))}; only one of "
            f"seeds.{'|'.join(PARTS)} may vary"
        )


def agreements(stored: Stored, sparsities: Sequence[float]) -> list[Agreement]:
    """Return how alike the masks are, of every setting of the runs.

    Training changes no mask, so runs of a setting that were trained and runs that were not belong
    together. Of runs with several rounds there are only masks of their own sparsity.

    Raises:
        ConfigError: runs are missing or of another study.
    """
    _check(stored.runs, (*OPTIONS, "sparsity", "training.epochs"))
    groups: dict[tuple[str, str, str], dict[int, Run]] = {}
    for run in stored.runs:
        part, seed = varied(run)
        key = (part, run.choice("scorer"), json.dumps(options(run)))
        groups.setdefault(key, {}).setdefault(seed, run)
    found = []
    for (part, scorer, text), by_seed in groups.items():
        if len(by_seed) < 2:
            continue
        made = [
            dict(masks(run, stored.layers[str(run.folder)], sparsities)) for run in by_seed.values()
        ]
        for sparsity in sorted(set.intersection(*(set(mask) for mask in made))):
            named = {
                str(i): {name: keep.numpy() for name, keep in mask[sparsity].items()}
                for i, mask in enumerate(made)
            }
            pairs = compare(named)
            found.append(
                Agreement(
                    part, scorer, json.loads(text), sparsity, len(made),
                    iou=_of_pairs(pairs, lambda p: p.iou),
                    by_chance=statistics.fmean(pair.iou_by_chance for pair in pairs),
                    distance=_of_pairs(pairs, lambda p: p.budget_distance),
                )
            )  # fmt: skip
    return found


def _of_pairs(pairs: Iterable[Pair], number: Callable[[Pair], float]) -> Interval:
    return spread({(int(p.first), int(p.second)): number(p) for p in pairs})


def default_table(found: Sequence[Agreement]) -> str:
    """Return Markdown: each scorer as its YAML file has it, by kind of seed and sparsity."""
    lines = [
        "| varied | scorer | sparsity | n | IoU | IoU by chance | budget distance |",
        "|" + "---|" * 7,
    ]
    common = {scorer: _common_options(found, scorer) for scorer in {a.scorer for a in found}}
    for part in PARTS:
        for a in found:
            if a.part == part and a.options == common[a.scorer]:
                lines.append(
                    f"| {part} | {a.scorer} | {a.sparsity:g} | {a.seeds} | {_shown(a.iou)} | "
                    f"{a.by_chance:.3f} | {_shown(a.distance)} |"
                )
    return "\n".join(lines)


def _shown(interval: Interval) -> str:
    return interval.shown(3, "-")


def _common_options(found: Sequence[Agreement], scorer: str) -> Mapping[str, int]:
    """Return the options with which a scorer was run with another initialization."""
    return next((a.options for a in found if a.scorer == scorer and a.part == "initialization"), {})


def curve(found: Sequence[Agreement]) -> dict[str, list[tuple[int, Agreement]]]:
    """Return by estimator ``(probes or draws, agreement)`` of masks with independent probes."""
    curves: dict[str, list[tuple[int, Agreement]]] = {}
    for a in found:
        if a.part == "probes" and a.options:
            number = a.options.get("num_probes", a.options.get("num_draws", 0))
            size = a.options.get("batch_size")
            shared = "" if size is None else f", {size} sample{'' if size == 1 else 's'} per probe"
            curves.setdefault(f"{a.scorer}{shared}", []).append((number, a))
    return {name: sorted(points, key=lambda p: p[0]) for name, points in curves.items()}


def curve_table(found: Sequence[Agreement]) -> str:
    """Return Markdown: IoU of masks with independent probes, by their number."""
    grid = sorted({a.sparsity for a in found})
    lines = [
        "| scorer | probes or draws | n | "
        + " | ".join(f"IoU, {s:g} | by chance, {s:g}" for s in grid)
        + " |",
        "|" + "---|" * (3 + 2 * len(grid)),
    ]
    for name, points in curve(found).items():
        for number in dict.fromkeys(number for number, _ in points):
            here = {a.sparsity: a for n, a in points if n == number}
            cells = [
                cell for s in grid for cell in (_shown(here[s].iou), f"{here[s].by_chance:.3f}")
            ]
            first = next(iter(here.values()))
            lines.append(f"| {name} | {number} | {first.seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def accuracy_table(runs: Iterable[Run]) -> str:
    """Return Markdown: test accuracy in percent over each kind of seed, of the trained runs.

    Raises:
        ConfigError: a run varies no kind of seed, or trained runs differ in more than that and the
            scorer.
    """
    trained = [run for run in runs if run.value("training.epochs") > 0]
    _check(trained)
    groups: dict[tuple[str, str], list[float]] = {}
    for run in trained:
        accuracy = run.metric(METRIC)
        assert accuracy is not None, "completed runs have it"
        groups.setdefault((varied(run)[0], run.choice("scorer")), []).append(100 * accuracy)
    lines = [
        "| varied | scorer | n | test accuracy, % | standard deviation | range |",
        "|" + "---|" * 6,
    ]
    for part in PARTS:
        for (kind, scorer), values in groups.items():
            if kind == part and len(values) > 1:
                lines.append(
                    f"| {part} | {scorer} | {len(values)} | {statistics.fmean(values):.2f} | "
                    f"{statistics.stdev(values):.2f} | {min(values):.2f}-{max(values):.2f} |"
                )
    return "\n".join(lines)
