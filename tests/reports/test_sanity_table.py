import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sweep_records
from scipy import stats

from pai.errors import ConfigError
from pai.reports.collect import Collection, collect
from pai.reports.paired import paired_gain
from pai.reports.sanity import gains, sanity_table

ACCURACIES = {"none": [0.90, 0.92, 0.94], "shuffle": [0.80, 0.83, 0.81]}


def record(sanity: str, seed: int, accuracy: float | None, **more: Any) -> dict[str, Any]:
    whole = sweep_records.record("snip", 0.98, seed, accuracy, choices={"sanity": sanity})
    return sweep_records.merged(whole, {"config": {"sanity": {"_target_": sanity}}} | more)


def records(accuracies: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [record(c, seed, a) for c, found in accuracies.items() for seed, a in enumerate(found)]


def collected(folder: Path, made: list[dict[str, Any]]) -> Collection:
    return collect(sweep_records.write(folder, *made))


def test_gains_are_paired_by_seed_with_t_intervals(tmp_path: Path) -> None:
    shuffled = records(ACCURACIES)[::-1]  # whatever the order of the records
    (found,) = gains(collected(tmp_path, shuffled)).values()
    gain = found["shuffle"]
    assert gain.mean == pytest.approx(32 / 3)
    expected = stats.ttest_rel([90, 92, 94], [80, 83, 81]).confidence_interval(0.95)
    assert gain.interval == pytest.approx((expected.low, expected.high))
    assert gain.pairs == 3
    assert paired_gain([1.5]).interval is None
    with pytest.raises(ValueError, match="no pair"):
        paired_gain([])


def test_the_table_has_a_row_per_method(tmp_path: Path) -> None:
    row = sanity_table(collected(tmp_path, records(ACCURACIES))).splitlines()[2]
    assert row.startswith("| `snip` | 0.98 | 92.0 (n=3) | +10.7 [")
    assert row.endswith("| not run | not run | not run |")


SHORT = {"training": {"epochs": 0}}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([record("none", 0, 0.5, status="failed", error="boom")], "run0 is failed: boom"),
        ([record("none", 0, None)], "run0: no finite test_accuracy"),
        ([record("none", 1, 0.5), record("none", 1, 0.5)], "two runs of snip at 0.98 .* seed 1"),
        ([record("none", 1, 0.5), record("invert", 2, 0.5)], "seeds 1, 2 have no pair .*invert"),
        ([record("none", 1, 0.5)], "no run with a sanity check"),
        ([], "no run with a sanity check"),
        (
            [record("none", 0, 0.5), record("shuffle", 0, 0.5, config=SHORT)],
            r"training.epochs: .* 3 in 1 run .*; 0 in 1 run \(.*run1\); make a table of each alone",
        ),
    ],
)
def test_nothing_is_left_out_in_silence(
    made: list[dict[str, Any]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        sanity_table(collected(tmp_path, made))


def test_the_script_prints_the_table_of_a_folder(tmp_path: Path) -> None:
    sweep_records.write(tmp_path, *records(ACCURACIES))
    script = Path(__file__).parents[2] / "scripts" / "sanity.py"
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| `snip` | 0.98 |" in done.stdout
    (tmp_path / "run0" / "record.json").write_text("{")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run0: unreadable" in done.stderr
    (tmp_path / "run0" / "record.json").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "seeds 0 have no pair" in done.stderr
    command[-1] = str(tmp_path / "nowhere")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nowhere: not a folder" in done.stderr
