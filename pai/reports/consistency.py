"""Do the runs of one table belong together? Only rows, columns and the seed may tell them apart."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pai.errors import ConfigError, nearest
from pai.identity import IGNORED, below, flatten, value_at
from pai.reports.collect import Run

# What comes with the choice of a group: a scorer may bring a schedule (conf/scorer/synflow.yaml).
_BRINGS = {"scorer": ("schedule",)}
_DENSE_FREE = ("sparsity", "scope", "schedule")  # nothing to a network that loses no weight
_SHOWN = 4
_DATA_OF_A_RUN = ("data.scoring", "data.spec", "data.duplicates")
_OPTIONS = (
    "choose with --where {key}={common}, or show it with --rows or --columns, or --ignore {key}"
)


def check_keys(runs: Sequence[Run], keys: Iterable[str], metric: str) -> None:
    """Check that there are runs, and that each key and the metric is in one of them.

    Raises:
        ConfigError: naming the key and the nearest one.
    """
    if not runs:
        raise ConfigError("no records found")
    known = {key for run in runs for key in (*run.part("choices"), *run.part("config"))}
    known |= {key for run in runs for key in flatten(run.part("config"))} | {"baseline"}
    for key in keys:
        if key not in known:
            raise ConfigError(f"{key}: no run has this group or key{nearest(key, sorted(known))}")
    metrics = {name for run in runs for name in run.part("metrics")}
    if metrics and metric not in metrics:
        raise ConfigError(f"metric: no run has {metric!r}{nearest(metric, sorted(metrics))}")


def check_same_experiment(
    runs: Sequence[Run], keys: Sequence[str], ignore: Iterable[str] = (), advice: str = _OPTIONS
) -> None:
    """Check that ``runs`` differ in nothing but ``keys`` and the seed, and had the same data.

    A key that is a group covers the options below it, as long as all runs with the same choice have
    the same options.

    Args:
        runs: of one table.
        keys: groups or configuration keys.
        ignore: more keys that do not count; ``data`` stands for what was in the data set.
        advice: what to do about it, for the message; may have ``{key}`` and ``{common}``, the value
            that most runs have.

    Raises:
        ConfigError: naming the key, its values and runs.
    """
    ignored = (*IGNORED, *ignore, "seed")
    _check_same_data(runs, ignored)
    groups = [key for key in keys if any(isinstance(r.part("config").get(key), dict) for r in runs)]
    brought = [part for group in groups for part in _BRINGS.get(group, ())]
    explained = (*keys, *brought)
    _check_equal(runs, (*ignored, *explained), "", advice)
    dotted = [key for key in keys if key not in groups]
    for group in groups:
        parts = (group, *(part for part in _BRINGS.get(group, ()) if part not in groups))
        for choice in sorted({run.choice(group) for run in runs}):
            for pruned_later in (False, True):
                same = [
                    run for run in runs
                    if run.choice(group) == choice and run.baseline == pruned_later
                ]  # fmt: skip
                _check_equal(same, (*ignored, *dotted), f"{group}={choice}: ", advice, only=parts)


def _check_same_data(runs: Sequence[Run], ignored: tuple[str, ...]) -> None:
    """Check that a data set that is configured alike was the same: files and texts can change."""
    alike: dict[str, list[tuple[Run, dict[str, str]]]] = {}
    for run in runs:
        found = {
            key: value
            for key, value in flatten({"data": run.part("data")}).items()
            if not below(key, (*ignored, *_DATA_OF_A_RUN))
        }
        alike.setdefault(str(_leaves(run, ignored, ("dataset",))), []).append((run, found))
    advice = "run them on the same data, or compare them nevertheless by --ignore data"
    for same in alike.values():
        _check_one_value(same, "", advice)


def _check_equal(
    runs: Sequence[Run], without: tuple[str, ...], context: str, advice: str,
    only: tuple[str, ...] = (),
) -> None:  # fmt: skip
    found = [_leaves(run, without, only) for run in runs]
    absent = dict.fromkeys((key for leaves in found for key in leaves), "absent")
    counting = [
        (run, {
            key: value for key, value in (absent | leaves).items()
            if not (run.dense and below(key, _DENSE_FREE))
        })
        for run, leaves in zip(runs, found, strict=True)
    ]  # fmt: skip
    _check_one_value(counting, context, advice)


def _check_one_value(
    found: Sequence[tuple[Run, Mapping[str, str]]], context: str, advice: str
) -> None:
    """Check that each key has one value in all runs that have it."""
    for key in sorted({key for _, leaves in found for key in leaves}):
        values: dict[str, list[Run]] = {}
        for run, leaves in found:
            if key in leaves:
                values.setdefault(leaves[key], []).append(run)
        if len(values) > 1:
            raise ConfigError(context + _explain(key, values, advice))


def _leaves(run: Run, without: tuple[str, ...], only: tuple[str, ...]) -> dict[str, str]:
    return {
        key: value
        for key, value in flatten(run.part("config")).items()
        if not below(key, without) and (not only or below(key, only))
    }


def _explain(key: str, values: Mapping[str, Sequence[Run]], advice: str) -> str:
    """Say how runs differ in ``key``; the rarer values first and with the names of their runs."""
    told = []
    ordered = sorted(values.items(), key=lambda item: len(item[1]))
    for number, (value, runs) in enumerate(ordered):
        count = f"{value} in {len(runs)} run{'s' * (len(runs) > 1)}"
        names = ", ".join(str(run.folder) for run in runs[:_SHOWN])
        last = number == len(ordered) - 1 and len(runs) > _SHOWN
        more = ", ..." if len(runs) > _SHOWN else ""
        told.append(count if last else f"{count} ({names}{more})")
    common = ordered[-1][0].strip('"')
    return (
        f"{key}: runs of one table differ in it: {'; '.join(told)}; "
        f"{advice.format(key=key, common=common)}"
    )


def schedule_note(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Say which rows come with another schedule than most."""
    if "scorer" not in keys or "schedule" in keys:
        return []
    chosen = {run.choice("scorer"): run.choice("schedule") for run in runs if not run.dense}
    if len(set(chosen.values())) < 2:
        return []
    common = Counter(chosen.values()).most_common(1)[0][0]
    others = [f"{name} ({how})" for name, how in sorted(chosen.items()) if how != common]
    return [f"schedule: {', '.join(others)}; all others {common}"]


def revision_notes(runs: Sequence[Run]) -> list[str]:
    """Say if the runs, or parts of a run, come from several revisions, versions or machines.

    Named is what :func:`pai.environment.decisive_changes` compares.
    """
    notes = []
    for title, parts in {
        "revisions of pai": ("git_sha",), "values of uncommitted changes": ("git_dirty",),
        "versions of torch": ("packages", "torch"), "devices": ("device_name",),
        "numbers of threads": ("threads",), "numbers of processes": ("processes",),
    }.items():  # fmt: skip
        found = [
            dict.fromkeys(
                str(value)
                for one in run.environments
                if (value := value_at(one, parts, ...)) is not ...  # older records lack some
            )
            for run in runs
        ]
        seen = Counter(value for values in found for value in values)
        if len(seen) > 1:
            told = ", ".join(
                f"{value} ({count} run{'s' * (count > 1)})" for value, count in seen.most_common()
            )
            several = sum(len(values) > 1 for values in found)
            more = f"; of {several} run{'s' * (several > 1)} the parts differ" * bool(several)
            notes.append(f"{len(seen)} {title}: {told}{more}")
    return notes
