"""What a run does with a directory that is not empty."""

import shutil
from pathlib import Path

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
