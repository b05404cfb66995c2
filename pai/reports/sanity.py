"""What a method gains over its own altered masks: differences of runs with the same seed."""

from collections.abc import Iterable, Mapping
from typing import Any

from pai.reports.paired import Gain, paired_gain

CHECKS = {
    "shuffle": "shuffled within layers",
    "random_same_budget": "random, same budgets",
    "reinit": "new initial weights",
    "invert": "inverted scores",
}
Group = tuple[str, float, str, str]


def gains(records: Iterable[Mapping[str, Any]]) -> dict[Group, dict[str, Gain]]:
    """Return, by scorer, sparsity, scope and baseline, the gain over each sanity check.

    A gain is test accuracy after the last epoch minus that of the run with the same seed and the
    check, in percentage points.

    Raises:
        ValueError: a run is not completed, two runs are the same, a run has no partner with its
            seed, or there is nothing to compare.
    """
    found: dict[Group, dict[str, dict[int, float]]] = {}
    for record in records:
        if record["status"] != "completed":
            raise ValueError(f"run {record['name']} is {record['status']}: {record['error']}")
        choices, config = record["choices"], record["config"]
        key = (choices["scorer"], config["sparsity"], config["scope"], choices["baseline"])
        seeds = found.setdefault(key, {}).setdefault(choices["sanity"], {})
        if record["seed"] in seeds:
            raise ValueError(
                f"two runs of {key[0]} at {key[1]:g} with sanity={choices['sanity']} and seed "
                f"{record['seed']}"
            )
        seeds[record["seed"]] = 100 * record["metrics"]["test_accuracy"]
    result = {}
    for key, checks in found.items():
        own = checks.pop("none", {})
        for check, seeds in checks.items():
            if set(seeds) != set(own):
                odd = sorted(set(seeds) ^ set(own))
                raise ValueError(
                    f"{key[0]} at {key[1]:g}: seeds {', '.join(map(str, odd))} have no pair of "
                    f"sanity=none and sanity={check}"
                )
        if checks:
            result[key] = {
                check: paired_gain([own[seed] - seeds[seed] for seed in sorted(seeds)])
                for check, seeds in checks.items()
            } | {"none": paired_gain([own[seed] for seed in sorted(own)])}
    if not result:
        raise ValueError(
            "no run with a sanity check beside one without; pai -m +experiment=sanity makes both"
        )
    return result


def sanity_table(records: Iterable[Mapping[str, Any]]) -> str:
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
    for (scorer, sparsity, scope, baseline), found in sorted(gains(records).items()):
        method = f"`{scorer}`"
        method += "" if scope == "global" else f", {scope}"
        method += "" if baseline == "none" else f", {baseline}"
        cells = [str(found[check]) if check in found else "not run" for check in CHECKS]
        own = found["none"]
        lines.append(
            f"| {method} | {sparsity:g} | {own.mean:.1f} (n={own.pairs}) | "
            + " | ".join(cells) + " |"
        )  # fmt: skip
    return "\n".join(lines)
