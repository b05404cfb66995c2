"""Tables of accuracy: one row per scorer, one column per sparsity, mean and spread over seeds."""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pai.records import FILE_NAME, read_record


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return all records below ``folder``, sorted by path."""
    records = (read_record(path.parent) for path in sorted(folder.rglob(FILE_NAME)))
    return [record for record in records if record is not None]


def accuracy_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table of the test accuracy after the last epoch, in percent.

    Each cell is mean +- sample standard deviation (number of seeds); collapsed layers, summed over
    the seeds, are counted beside it. The dense reference has one value for all sparsities. Rows are
    sorted by their mean over the columns.

    Raises:
        ValueError: a run is not completed, there are none, or two have the same scorer, sparsity
            and seed: nothing is averaged in silence.
    """
    cells: dict[tuple[str, float], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if record["status"] != "completed":
            raise ValueError(f"run {record['name']} is {record['status']}: {record['error']}")
        scorer = record["choices"]["scorer"]
        dense = record["mask"]["kept"] == record["mask"]["prunable"]
        key = (scorer, 0.0 if dense else record["config"]["sparsity"])
        seeds = cells.setdefault(key, {})
        if record["seed"] in seeds:
            raise ValueError(f"two runs of {scorer} at {key[1]} with seed {record['seed']}")
        seeds[record["seed"]] = record
    if not cells:
        raise ValueError("no records found")
    columns = sorted({sparsity for _, sparsity in cells if sparsity > 0})
    scorers = {scorer for scorer, _ in cells}
    rows = sorted(scorers, key=lambda scorer: -_row_mean(cells, scorer))
    lines = [
        "| scorer | " + " | ".join(f"sparsity {sparsity:g}" for sparsity in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for scorer in rows:
        texts = [
            _cell(cells.get((scorer, sparsity)) or cells.get((scorer, 0.0))) for sparsity in columns
        ]
        lines.append(f"| `{scorer}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _accuracies(seeds: Mapping[int, Mapping[str, Any]]) -> list[float]:
    return [100 * record["metrics"]["test_accuracy"] for record in seeds.values()]


def _row_mean(
    cells: Mapping[tuple[str, float], Mapping[int, Mapping[str, Any]]], scorer: str
) -> float:
    values = [v for (name, _), seeds in cells.items() if name == scorer for v in _accuracies(seeds)]
    return statistics.mean(values)


def _cell(seeds: Mapping[int, Mapping[str, Any]] | None) -> str:
    if not seeds:
        return "missing"
    values = _accuracies(seeds)
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    collapsed = sum(len(record["mask"]["collapsed_layers"]) for record in seeds.values())
    note = f", {collapsed} collapsed layers" if collapsed else ""
    return f"{statistics.mean(values):.1f}{spread} (n={len(values)}{note})"
