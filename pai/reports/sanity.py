"""What a method gains over its own altered masks: differences of runs with the same seed."""

from typing import Any

from pai.errors import ConfigError
from pai.metrics import ACCURACY
from pai.reports.collect import Collection
from pai.reports.consistency import check_same_experiment
from pai.reports.paired import Gain, paired_gain

CHECKS = {
    "shuffle": "shuffled within layers",
    "random_same_budget": "random, same budgets",
    "reinit": "new initial weights",
    "invert": "inverted scores",
}
Group = tuple[Any, ...]
"""The values of ``_KEYS``."""
_KEYS = ("scorer", "sparsity", "scope", "baseline")
_METRIC = "test_accuracy"
_ADVICE = "make a table of each alone"


def gains(collection: Collection) -> dict[Group, dict[str, Gain]]:
    """Return, by scorer, sparsity, scope and baseline, the gain over each sanity check.

    A gain is test accuracy after the last epoch minus that of the run with the same seed and the
    check, in percentage points.

    Raises:
        ConfigError: a run cannot be read, is not completed or has no accuracy, two runs are the
            same, runs differ in something else than these keys, the check and the seed, a run has
            no partner with its seed, or there is nothing to compare.
    """
    for out in collection.unreadable:
        raise ConfigError(f"{out.folder}: {out.reason}")
    check_same_experiment(collection.runs, (*_KEYS, "sanity"), advice=_ADVICE)
    found: dict[Group, dict[str, dict[int, float]]] = {}
    for run in collection.runs:
        accuracy = run.metric(_METRIC)
        if run.record["status"] != "completed":
            raise ConfigError(f"{run.folder} is {run.record['status']}: {run.record.get('error')}")
        if accuracy is None:
            raise ConfigError(f"{run.folder}: no finite {_METRIC}")
        key = tuple(run.value(name) for name in _KEYS)
        seeds = found.setdefault(key, {}).setdefault(run.choice("sanity"), {})
        if run.seed in seeds:
            raise ConfigError(
                f"two runs of {key[0]} at {key[1]:g} with sanity={run.choice('sanity')} and seed "
                f"{run.seed}, {run.folder} is one of them"
            )
        seeds[run.seed] = ACCURACY.scale * accuracy
    result = {}
    for key, checks in found.items():
        own = checks.pop("none", {})
        for check, seeds in checks.items():
            if set(seeds) != set(own):
                odd = sorted(set(seeds) ^ set(own))
                raise ConfigError(
                    f"{key[0]} at {key[1]:g}: seeds {', '.join(map(str, odd))} have no pair of "
                    f"sanity=none and sanity={check}"
                )
        if checks:
            result[key] = {
                check: paired_gain([own[seed] - seeds[seed] for seed in sorted(seeds)])
                for check, seeds in checks.items()
            } | {"none": paired_gain([own[seed] for seed in sorted(own)])}
    if not result:
        raise ConfigError(
            "no run with a sanity check beside one without; pai -m +experiment=sanity makes both"
        )
    return result


def sanity_table(collection: Collection) -> str:
    """Return a Markdown table: one row per method, its accuracy and its gain over each check.

    Gains are in percentage points with 95 % t intervals of the mean over seeds; errors as in
    :func:`gains`. Shuffled and random masks have the same distribution, so that the difference
    between those two columns is noise.
    """
    lines = [
        "| method | sparsity | test accuracy | "
        + " | ".join(f"gain over {text}" for text in CHECKS.values())
        + " |",
        "|---" * (3 + len(CHECKS)) + "|",
    ]
    for (scorer, sparsity, scope, baseline), found in sorted(gains(collection).items()):
        method = f"`{scorer}`"
        method += "" if scope == "global" else f", {scope}"
        method += "" if baseline == "none" else f", {baseline}"
        digits, own = ACCURACY.digits, found["none"]
        cells = [found[c].shown(digits) if c in found else "not run" for c in CHECKS]
        lines.append(
            f"| {method} | {sparsity:g} | {own.mean:.{digits}f} (n={own.pairs}) | "
            + " | ".join(cells) + " |"
        )  # fmt: skip
    return "\n".join(lines)
