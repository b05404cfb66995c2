"""Runs of version 0.1.0, whose configuration had fewer keys, beside those of today."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import CHECKOUT, TINY, check, config, record_in, tiny_run

from pai.errors import ConfigError
from pai.identity import ADDED, completed, digest
from pai.records import write_record
from pai.reports.collect import collect
from pai.reports.grid import Layout, build_grid

FROZEN = Path(__file__).parent / "frozen" / "record_0.1.0.json"


def older(folder: Path, **changes: Any) -> Path:
    """Write the record of the older version into ``folder`` and return it."""
    folder.mkdir(parents=True)
    write_record(folder, json.loads(FROZEN.read_text()) | changes)
    return folder


def test_the_older_record_lacks_what_came_later() -> None:
    leaves = json.loads(FROZEN.read_text())["config"]
    assert "precision" not in leaves["scoring"]
    assert "scoring.precision" in ADDED


def test_a_configuration_is_completed_only_where_its_section_is() -> None:
    assert completed({"scoring": {"x": 1}, "a": 2}) == {
        "scoring": {"x": 1, "precision": "float32"}, "a": 2,
    }  # fmt: skip
    for whole in ({}, {"scoring": None}, {"scoring": {"precision": "tf32"}}):
        assert completed(whole) == whole


def test_an_older_run_is_recognised(tmp_path: Path) -> None:
    run_dir = older(tmp_path / "run")
    before = (run_dir / "record.json").read_bytes()
    record = tiny_run(run_dir)
    assert record["metrics"] == json.loads(FROZEN.read_text())["metrics"]
    assert (run_dir / "record.json").read_bytes() == before


def test_an_older_run_is_continued(tmp_path: Path) -> None:
    run_dir = older(tmp_path / "run", status="running", mask=None)
    assert tiny_run(run_dir)["status"] == "completed"
    assert record_in(run_dir)["config"]["scoring"]["precision"] == "float32"


def test_an_older_job_of_a_sweep_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(tmp_path / "sweep" / "job")
    monkeypatch.chdir(tmp_path)
    check("-m", *TINY, "hydra.sweep.dir=sweep", "hydra.sweep.subdir=job")


def test_a_value_that_the_older_run_did_not_have_is_another_run(tmp_path: Path) -> None:
    run_dir = older(tmp_path / "run")
    with pytest.raises(ConfigError, match=r'scoring\.precision="float32", not "tf32"; choose'):
        tiny_run(run_dir, "scoring.precision=tf32")


def test_older_and_newer_runs_make_one_table(tmp_path: Path) -> None:
    older(tmp_path / "old", choices={})  # as of a run from Python
    tiny_run(tmp_path / "new", "seed=1", "training.epochs=1")
    collection = collect(tmp_path)
    assert {run.value("scoring.precision") for run in collection.runs} == {"float32"}
    assert collection.frame()["setting"].nunique() == 1
    grid = build_grid(collection, Layout())
    (cell,) = grid.cells.values()
    assert sorted(cell.values) == [0, 1]


def test_their_digests_are_those_of_one_experiment() -> None:
    stored = json.loads(FROZEN.read_text())["config"]
    assert digest(stored) == digest(config(*TINY))
    assert digest(stored) != digest(config(*TINY, "scoring.precision=tf32"))


def test_an_older_run_is_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "scripts"))
    tiny_run(tmp_path / "new", "training.epochs=0")
    run_dir = older(tmp_path / "old")
    shutil.copy(tmp_path / "new" / "model.safetensors", run_dir)
    model, spec = importlib.import_module("compact").rebuild(run_dir)
    assert spec.channels == 1
    assert not model.training
