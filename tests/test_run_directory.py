"""What a run does with a directory that is not empty."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY, check, command, record_in, tiny_run

from pai.errors import ConfigError

WRITTEN = (
    "checkpoint.pt", "rounds.pt", "round-7.pt", "model.safetensors", "mask.safetensors",
    "scores.json", "scores.safetensors",
)  # fmt: skip


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was interrupted after its last epoch."""
    folder = tmp_path_factory.mktemp("interrupted")

    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pai.output.Output.model", lambda self, model: stop(folder))
        tiny_run(folder)
    return folder


@pytest.mark.parametrize("name", WRITTEN)
def test_files_of_somebody_else_are_neither_removed_nor_overwritten(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("years of work")
    with pytest.raises(ConfigError) as caught:
        tiny_run(tmp_path)
    assert str(caught.value) == (
        f"hydra.run.dir: {tmp_path} holds {name} but no record of a run, and a run would "
        f"overwrite or remove it; choose another directory, or move it"
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "years of work"


def test_they_are_seen_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_text("years of work")
    done = command(*TINY, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("config error: hydra.run.dir: run holds checkpoint.pt but no ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]


def test_in_a_sweep_the_directory_of_the_sweep_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep" / "job").mkdir(parents=True)
    (tmp_path / "sweep" / "job" / "mask.safetensors").touch()
    with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: sweep/job holds mask\.safeten"):
        check("-m", *TINY, "hydra.sweep.dir=sweep", "hydra.sweep.subdir=job")


def test_other_files_are_none_of_its_business(tmp_path: Path) -> None:
    others = ("model.pt", "round-7.txt", "checkpoint.pt.bak", ".hydra", "pai.log", "scores.csv")
    for name in others:
        (tmp_path / name).write_text("years of work")
    assert tiny_run(tmp_path)["status"] == "completed"
    assert all((tmp_path / name).read_text() == "years of work" for name in others)


def test_what_a_run_leaves_when_it_is_killed_while_it_starts_is_no_hindrance(
    tmp_path: Path,
) -> None:
    (tmp_path / ".record.json.abcd1234.tmp").write_text("{")
    (tmp_path / ".hydra").mkdir()
    assert tiny_run(tmp_path)["status"] == "completed"


def test_files_beside_a_record_are_the_runs_own(interrupted: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(interrupted, tmp_path / "run")
    for name in WRITTEN:
        if not (run_dir / name).exists():
            assert name not in ("checkpoint.pt", "mask.safetensors")
            (run_dir / name).touch()
    (run_dir / "rounds.pt").unlink()
    tiny_run(run_dir)
    assert record_in(run_dir)["status"] == "completed"
    assert not (run_dir / "round-7.pt").exists()


@pytest.mark.parametrize("name", ["checkpoint.pt", "mask.safetensors"])
def test_a_run_without_its_record_is_not_continued(
    name: str, interrupted: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(interrupted, tmp_path / "run")
    (run_dir / "record.json").unlink()
    with pytest.raises(ConfigError, match=r"holds checkpoint\.pt but no record of a run"):
        tiny_run(run_dir)
    assert (run_dir / name).read_bytes() == (interrupted / name).read_bytes()
    for path in run_dir.iterdir():  # as the message says
        path.rename(tmp_path / path.name)
    assert tiny_run(run_dir)["status"] == "completed"


@pytest.mark.parametrize("name", [300 * "x", f"{300 * 'x'}/run"])
def test_a_directory_that_cannot_be_made_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dir: .*xxx.* cannot be made: File name too"):
        check(*TINY, f"hydra.run.dir={tmp_path}/{name}")


def test_a_directory_that_cannot_be_entered_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(run_dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(run_dir))

    monkeypatch.setattr("pai.run_directory.read_run", closed)
    with pytest.raises(ConfigError) as caught:
        tiny_run(tmp_path)
    assert str(caught.value) == f"hydra.run.dir: {tmp_path}: Permission denied"


def damaged(name: str, record: dict[str, Any]) -> str:
    """Return the text of a record with one thing wrong."""
    mask = record["mask"]
    changes: dict[str, dict[str, Any]] = {
        "config": {"config": None}, "a list": {"config": []}, "status": {"status": "weird"},
        "number": {"status": 5}, "mask": {"mask": 5}, "empty mask": {"mask": {}},
        "hash only": {"mask": {"sha256": mask["sha256"]}}, "times": {"timing_s": {"total": None}},
        "no times": {"timing_s": None}, "completed": {"status": "completed", "metrics": {}},
        "layers": {"mask": mask | {"layers": [5]}}, "cost": {"cost": {}},
        "peak": {"peak_memory_gib": "much"}, "environments": {"earlier_environments": 5},
    }  # fmt: skip
    if name == "deep":
        return 200_000 * "["
    if name == "long":
        return '{"a": ' + 10_000 * "9" + "}"
    if name.startswith("no "):
        return json.dumps({k: v for k, v in record.items() if k != name.removeprefix("no ")})
    return json.dumps(record | changes[name])


@pytest.mark.parametrize(
    ("damage", "said"),
    {
        "deep": "nested too deeply", "long": "Exceeds the limit", "no status": "its status is None",
        "no mask": "it has no mask", "no config": "it has no config", "config": "its config is Non",
        "a list": "its config is []", "status": "its status is 'weird', not running, completed, f",
        "number": "its status is 5", "mask": "its mask is 5", "empty mask": "it has no mask.sha256",
        "hash only": "it has no mask.kept", "times": "its timing_s holds something else",
        "no timing_s": "it has no timing_s", "completed": "it has no metrics.test_accuracy",
        "layers": "its mask.layers is 5", "cost": "it has no cost.forward_flops_dense",
        "peak": "its peak_memory_gib is 'much'", "environments": "its earlier_environments is 5",
    }.items(),
)  # fmt: skip
def test_a_record_that_is_no_runs_is_named_and_kept(
    damage: str, said: str, interrupted: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(interrupted, tmp_path / "run")
    text = damaged(damage, record_in(run_dir))
    (run_dir / "record.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        tiny_run(run_dir)
    start = f"hydra.run.dir: {run_dir}/record.json is not a valid record: {said}"
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith("; choose another directory")
    assert "\n" not in str(caught.value)
    assert (run_dir / "record.json").read_text() == text
    assert (run_dir / "checkpoint.pt").exists()


@pytest.mark.parametrize("name", ["record.json", *WRITTEN])
def test_a_folder_named_like_a_file_of_the_run_is_named(
    name: str, interrupted: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(interrupted, tmp_path / "run")
    (run_dir / name).unlink(missing_ok=True)
    (run_dir / name).mkdir()
    said = "is a folder|is not a valid record: not a file"
    with pytest.raises(ConfigError, match=rf"^hydra\.run\.dir: .*/{re.escape(name)} ({said})"):
        tiny_run(run_dir)
    assert (run_dir / name).is_dir()


def test_a_folder_with_the_name_of_a_temporary_file_stays(
    interrupted: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(interrupted, tmp_path / "run")
    (run_dir / ".x.tmp").mkdir()
    assert tiny_run(run_dir)["status"] == "completed"
    assert (run_dir / ".x.tmp").is_dir()
