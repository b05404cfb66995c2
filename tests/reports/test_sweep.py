"""The table at the end of a sweep, from hand-made records."""

from pathlib import Path
from typing import Any

import pytest

from pai.records import write_record
from pai.reports.sweep import sweep_table


@pytest.fixture
def job(tmp_path: Path) -> Any:
    def write(name: str, **record: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if record:
            write_record(folder, {"error": None, "metrics": {}, **record})
        return folder

    return write


def test_every_job_has_a_line_in_its_order(job: Any, tmp_path: Path) -> None:
    folders = [
        job("seed=0", status="completed", metrics={"test_accuracy": 0.9375}),
        job("seed=1", status="failed", error="RunError: the loss\n  became nan"),
        tmp_path / "seed=2",  # not even a folder
        job("seed=3"),
        job("seed=4", status="running"),
    ]
    table, unfinished = sweep_table(folders)
    rows = [
        row.split(maxsplit=1) for row in table.replace("not started", "not-started").split("\n")
    ]
    assert [row[0] for row in rows] == [
        "completed", "failed", "not-started", "not-started", "running",
    ]  # fmt: skip
    assert [row[1].split()[0] for row in rows] == [folder.name for folder in folders]
    assert "test 93.75%" in rows[0][1]
    assert "RunError: the loss became nan" in rows[1][1]
    assert unfinished == 4


def test_a_job_that_is_still_running_has_no_error_to_show(job: Any) -> None:
    table, _ = sweep_table([job("seed=4", status="running")])
    assert table.split() == ["running", "seed=4"]


def test_names_are_aligned(job: Any, tmp_path: Path) -> None:
    folders = [
        job("a", status="completed", metrics={"test_accuracy": 0.5}),
        job("b", status="failed", error="boom"),
        tmp_path / "c",
    ]
    lines = sweep_table(folders)[0].splitlines()
    assert [line[13] for line in lines] == ["a", "b", "c"]


def test_a_sweep_that_is_done_has_nothing_unfinished(job: Any) -> None:
    folders = [job(str(n), status="completed", metrics={"test_accuracy": 1.0}) for n in range(3)]
    table, unfinished = sweep_table(folders)
    assert unfinished == 0
    assert table.count("test 100.00%") == 3


def test_no_jobs_no_table() -> None:
    assert sweep_table([]) == ("", 0)
