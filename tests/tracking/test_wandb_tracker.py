"""The W&B tracker, offline; runs are read back with W&B's own reader."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from tiny import plan, record_in
from wandb_runs import history, isolate, read, runs_in, summary

from pai.runner import run
from pai.tracking.base import RunLabels
from pai.tracking.wandb import WandbTracker

CONFIG = {"seed": 3, "scorer": {"num_probes": 2}}
LABELS = RunLabels(
    name="seed=0", title="a name", group="a sweep", job_type="snip", tags=("late",),
    choices={"scorer": "snip"},
)  # fmt: skip
NOWHERE = "http://127.0.0.1:9"  # no server listens there
OFFLINE = WandbTracker(project="trial", mode="offline", tags=["early"])


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path / "home")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, list[Any]]]]:
    """Run directory and W&B records of a whole tiny run."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, folder / "home")
        tracker = WandbTracker(project="trial", mode="offline", tags=["early"], group=None)
        run(plan("scorer=snip", "training.epochs=2", tracker=tracker), folder / "run", LABELS)
    (written,) = runs_in(folder / "run")
    yield folder / "run", read(written)


def test_a_run_carries_its_labels_and_resolved_configuration(
    whole: tuple[Path, dict[str, list[Any]]],
) -> None:
    run_dir, records = whole
    (started,) = records["run"]
    assert started["project"] == "trial"
    assert started["display_name"] == "a name"
    assert started["run_group"] == "a sweep"
    assert started["job_type"] == "snip"
    assert set(started["tags"]) == {"early", "late"}
    logged = started["config"]["update"]
    config = record_in(run_dir)["config"]
    for key in config:
        assert logged[key] == config[key]


def test_a_continued_run_continues_the_same_wandb_run(tmp_path: Path) -> None:
    found = []
    for epochs in ((1, 2), (3,)):
        with OFFLINE.session(CONFIG, LABELS, tmp_path) as session:
            for epoch in epochs:
                session.log_epoch({"epoch": epoch, "train_loss": 1 / epoch})
    for folder in runs_in(tmp_path):
        records = read(folder)
        found.append(records["run"][0]["run_id"])
        assert [row["_step"] for row in history(records)] == [
            row["epoch"] for row in history(records)
        ]
    assert len(set(found)) == 1
    assert found[0] == (tmp_path / "wandb" / "run_id").read_text()


def test_metrics_say_how_they_are_summed_up(whole: tuple[Path, dict[str, list[Any]]]) -> None:
    _, records = whole
    metrics = {entry.get("glob_name") or entry["name"]: entry for entry in records["metric"]}
    assert metrics["val/accuracy"]["summary"] == {"max": True, "last": True}
    assert metrics["val/loss"]["summary"] == {"min": True, "last": True}
    assert {entry.get("step_metric") for name, entry in metrics.items() if "/" in name} == {"epoch"}


def test_the_summary_has_the_axes_of_parallel_coordinates(
    whole: tuple[Path, dict[str, list[Any]]],
) -> None:
    run_dir, records = whole
    final, record = summary(records), record_in(run_dir)
    assert final["sparsity"] == 0.9
    assert final["seed"] == 0
    assert final["scorer"] == "snip"
    assert final["score_s"] == pytest.approx(record["timing_s"]["score"])


def test_every_epoch_is_logged_against_its_number(
    whole: tuple[Path, dict[str, list[Any]]],
) -> None:
    run_dir, records = whole
    rows = [row for row in history(records) if "epoch" in row]
    expected = record_in(run_dir)["history"]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, truth in zip(rows, expected, strict=True):
        for part in ("train", "val"):
            for metric in ("loss", "accuracy"):
                assert row[f"{part}/{metric}"] == pytest.approx(truth[f"{part}_{metric}"])
        assert row["lr"] == pytest.approx(truth["lr"])
    metrics = {entry.get("glob_name") or entry["name"]: entry for entry in records["metric"]}
    assert metrics["train/*"]["step_metric"] == metrics["val/*"]["step_metric"] == "epoch"


def test_the_summary_has_the_numbers_of_the_record(
    whole: tuple[Path, dict[str, list[Any]]],
) -> None:
    run_dir, records = whole
    final, record = summary(records), record_in(run_dir)
    for key, value in record["metrics"].items():
        assert final[key] == pytest.approx(value)
    for key in ("sparsity", "sparsity_all_parameters", "effective_sparsity", "kept", "sha256"):
        assert final[f"mask/{key}"] == record["mask"][key]
    assert final["mask/collapsed_layers"] == len(record["mask"]["collapsed_layers"])
    for key in ("warmup", "score", "mask", "train", "total"):
        assert final[f"time_s/{key}"] == pytest.approx(record["timing_s"][key])
    for key, number in record["cost"].items():
        assert final[f"cost/{key}"] == number
    for key, number in record["scoring"]["zero_scores"].items():
        assert final[f"zero_scores/{key}"] == number
    assert final["mask/prunable"] == record["mask"]["prunable"]
    assert final["score_cached"] is record["scoring"]["cached"]
    assert final["baseline/steps"] == record["baseline"]["steps"]
    assert final["peak_memory_gib"] == pytest.approx(record["peak_memory_gib"])


def test_the_mask_is_logged_as_a_table_and_as_a_file(
    whole: tuple[Path, dict[str, list[Any]]],
) -> None:
    run_dir, records = whole
    (folder,) = runs_in(run_dir)
    (path,) = (folder / "files").rglob("*.table.json")
    table = json.loads(path.read_text())
    layers = record_in(run_dir)["mask"]["layers"]
    assert table["data"] == [[layer[key] for key in table["columns"]] for layer in layers]
    assert {"name", "total", "kept", "density"} <= set(table["columns"])
    (artifact,) = [entry for entry in records["artifact"] if entry["type"] == "mask"]
    (file,) = artifact["manifest"]["contents"]
    assert file["path"] == "mask.safetensors"
    assert int(file["size"]) == (run_dir / "mask.safetensors").stat().st_size


def test_scores_are_logged_as_histograms_that_count_every_weight(
    whole: tuple[Path, dict[str, list[Any]]],
) -> None:
    run_dir, records = whole
    (row,) = [row for row in history(records) if "scores/all.values" in row]
    layers = record_in(run_dir)["mask"]["layers"]
    assert sum(row["scores/all.values"]) <= record_in(run_dir)["mask"]["prunable"]
    counted = sum(sum(row[f"scores/{layer['name']}.values"]) for layer in layers)
    assert counted == sum(row["scores/all.values"]) > 0


def test_a_finished_run_is_marked_as_such(whole: tuple[Path, dict[str, list[Any]]]) -> None:
    _, records = whole
    assert records["exit"][0].get("exit_code", 0) == 0


def test_an_exception_marks_the_run_as_failed_and_goes_on(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="boom"),
        OFFLINE.session(CONFIG, LABELS, tmp_path) as session,
    ):
        session.log_epoch({"epoch": 1, "train_loss": 0.5})
        raise RuntimeError("boom")
    (folder,) = runs_in(tmp_path)
    records = read(folder)
    assert records["exit"][0]["exit_code"] == 1
    assert history(records)[0]["train/loss"] == 0.5
    assert wandb.run is None or wandb.run._is_finished


def test_two_sessions_of_one_process_are_two_runs(tmp_path: Path) -> None:
    for number in (1, 2):
        labels = RunLabels(name=f"job {number}", group="a sweep", job_type="sweep")
        with OFFLINE.session(CONFIG, labels, tmp_path / str(number)) as session:
            session.log_epoch({"epoch": 1, "val_accuracy": number / 4})
    found = []
    for number in (1, 2):
        (folder,) = runs_in(tmp_path / str(number))
        records = read(folder)
        assert [row["val/accuracy"] for row in history(records)] == [number / 4]
        found.append((records["run"][0]["display_name"], records["run"][0]["run_id"]))
    assert [name for name, _ in found] == ["job 1", "job 2"]
    assert found[0][1] != found[1][1]


def test_the_files_are_in_the_run_directory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    with OFFLINE.session(CONFIG, LABELS, tmp_path / "run"):
        pass
    assert len(runs_in(tmp_path / "run")) == 1
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_group_of_the_configuration_wins_over_the_sweeps(tmp_path: Path) -> None:
    tracker = WandbTracker(project="trial", mode="offline", group="my own")
    with tracker.session(CONFIG, LABELS, tmp_path):
        pass
    (folder,) = runs_in(tmp_path)
    assert read(folder)["run"][0]["run_group"] == "my own"


def test_auto_without_credentials_is_offline_and_never_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdin", closed)  # reading from it raises
    with WandbTracker(project="trial").session(CONFIG, LABELS, tmp_path) as session:
        session.log_epoch({"epoch": 1})
    (folder,) = runs_in(tmp_path)
    assert folder.name.startswith("offline-run-")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize(
    ("variable", "mode"),
    [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled"), ("online", "online")],
)
def test_auto_respects_the_variable(
    variable: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    assert WandbTracker(project="trial")._mode() == mode
    assert WandbTracker(project="trial", mode="offline")._mode() == "offline"


@pytest.mark.parametrize("variable", ["", "onlin"])
def test_a_variable_that_wandb_would_refuse_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    with pytest.raises(ValueError, match=f"variable WANDB_MODE is '{variable}'; set it to online"):
        WandbTracker(project="trial")


def test_auto_with_credentials_is_online_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert WandbTracker(project="trial")._mode() == "online"
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_disabled_tracker_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with WandbTracker(project="trial").session(CONFIG, LABELS, tmp_path) as session:
        session.log_epoch({"epoch": 1})
    assert runs_in(tmp_path) == []


def test_an_unreachable_server_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    tracker = WandbTracker(project="trial", mode="online", init_timeout_s=2)
    with caplog.at_level(logging.WARNING), tracker.session(CONFIG, LABELS, tmp_path) as session:
        session.log_epoch({"epoch": 1, "train_loss": 0.5})
    assert "going on offline" in caplog.text
    (folder,) = [path for path in runs_in(tmp_path) if path.name.startswith("offline-run-")]
    assert history(read(folder))[0]["train/loss"] == 0.5


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_the_timeout_is_positive(seconds: float) -> None:
    with pytest.raises(ValueError, match="init_timeout_s"):
        WandbTracker(project="trial", init_timeout_s=seconds)
