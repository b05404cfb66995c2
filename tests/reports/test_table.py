import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pai.records import write_record
from pai.reports.table import accuracy_table, read_records


def record(scorer: str, sparsity: float, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    kept = 100 if scorer == "none" else round(100 * (1 - sparsity))
    return {
        "status": "completed",
        "name": f"{scorer}-{sparsity}-{seed}",
        "error": None,
        "choices": {"scorer": scorer},
        "config": {"sparsity": sparsity},
        "seed": seed,
        "metrics": {"test_accuracy": accuracy},
        "mask": {"kept": kept, "prunable": 100, "collapsed_layers": more.pop("collapsed", [])},
    } | more


def test_cells_are_mean_and_sample_deviation_and_rows_are_sorted() -> None:
    records = [
        record("hts", 0.9, 0, 0.90), record("hts", 0.9, 1, 0.94),
        record("random", 0.9, 0, 0.50), record("random", 0.98, 0, 0.10, collapsed=["a", "b"]),
        record("none", 0.5, 0, 0.99),
    ]  # fmt: skip
    assert accuracy_table(records).splitlines() == [
        "| scorer | sparsity 0.9 | sparsity 0.98 |",
        "|---|---|---|",
        "| `none` | 99.0 (n=1) | 99.0 (n=1) |",
        "| `hts` | 92.0 ± 2.8 (n=2) | missing |",
        "| `random` | 50.0 (n=1) | 10.0 (n=1, 2 collapsed layers) |",
    ]


def test_unfinished_and_duplicate_runs_are_not_averaged_in_silence() -> None:
    with pytest.raises(ValueError, match=r"run snip-0.9-0 is failed: boom"):
        accuracy_table([record("snip", 0.9, 0, 0.5, status="failed", error="boom")])
    with pytest.raises(ValueError, match=r"two runs of snip at 0.9 with seed 3"):
        accuracy_table([record("snip", 0.9, 3, 0.5), record("snip", 0.9, 3, 0.6)])
    with pytest.raises(ValueError, match="no records"):
        accuracy_table([])


def test_the_script_prints_the_table_of_a_folder(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / "sweep" / f"seed={seed}"
        folder.mkdir(parents=True)
        write_record(folder, record("snip", 0.9, seed, 0.5))
    assert len(read_records(tmp_path)) == 2
    script = Path(__file__).parents[2] / "scripts" / "table.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "| `snip` | 50.0 ± 0.0 (n=2) |" in done.stdout
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(empty)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "table error: no records found\n"
