"""Sweeps with several launchers: nothing that befalls one job stops or hides the others."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import CHECKOUT, TINY, check, environment, record_in

from pai.cli import _parse, register_resolvers
from pai.compose import compose_jobs
from pai.errors import ConfigError

STATES = re.compile(r"^(completed|failed|running|not started) ", re.MULTILINE)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)


def sweep(
    folder: Path, ways: Sequence[str], *more: str, launcher: str
) -> subprocess.CompletedProcess[str]:
    """Run a sweep over the ways in which its jobs end, in a session of its own."""
    variables = {
        "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}",
        "PAI_TRUSTED_PACKAGES": "failing_scorers",
    }
    overrides = [
        *TINY, "scorer._target_=failing_scorers.Ending", f"+scorer.how={','.join(ways)}",
        f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep", *more,
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "pai", "-m", *overrides], cwd=folder,
        env=environment(**variables), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=200, check=False, start_new_session=True,
    )  # fmt: skip


def states(done: subprocess.CompletedProcess[str]) -> list[str]:
    return STATES.findall(done.stdout)


def records(folder: Path) -> dict[str, dict[str, object]]:
    found = [record_in(path.parent) for path in (folder / "sweep").glob("*/record.json")]
    return {str(record["config"]["scorer"]["how"]): record for record in found}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        ("joblib", ["hydra.launcher.n_jobs=2"]),
        pytest.param("ray", [], marks=needs_ray),
    ],
)
def test_killed_and_failed_jobs_neither_stop_nor_hide_the_others(
    launcher: str, more: list[str], tmp_path: Path
) -> None:
    ways = ["well", "kill", "raise", "well2", "well3"]
    done = sweep(tmp_path, ways, *more, launcher=launcher)
    assert done.returncode == 1, done.stderr
    assert states(done) == ["completed", "failed", "failed", "completed", "completed"], done.stdout
    assert "run error: 2 of 5 jobs are not done" in done.stderr
    found = records(tmp_path)
    assert "process of the job was killed" in str(found["kill"]["error"])
    assert found["raise"]["error"] == "RuntimeError: deliberate"
    hashes = {found[way]["mask"]["sha256"] for way in ("well", "well2", "well3")}  # type: ignore[index]
    assert len(hashes) == 1

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("sweep/*/record.json")}
    again = sweep(tmp_path, ["well", "raise", "well2"], *more, launcher=launcher)
    assert states(again) == ["completed", "failed", "completed"]
    touched = [path.parent.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert len(touched) == 1
    assert "how=raise" in touched[0]


@pytest.mark.faults
def test_a_preempted_job_of_submitit_is_requeued_and_a_killed_one_hides_nothing(
    tmp_path: Path,
) -> None:
    done = sweep(tmp_path, ["preempt_once", "kill", "well"], launcher="submitit_local")
    assert states(done) == ["completed", "failed", "completed"], done.stdout + done.stderr
    assert (tmp_path / "done-once").exists()
    assert "process of the job was killed" in str(records(tmp_path)["kill"]["error"])


@pytest.mark.slow
def test_concurrent_jobs_at_several_sparsities_score_once(tmp_path: Path) -> None:
    overrides = [
        *TINY, "scorer=gts", "sparsity=0.5,0.9", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pai", "-m", *overrides], cwd=tmp_path, timeout=200, check=False,
        env=environment(PAI_CACHE=str(tmp_path / "cache")), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [record_in(path.parent) for path in tmp_path.glob("sweep/*/record.json")]
    assert sorted(record["scoring"]["cached"] for record in found) == [False, True]
    assert len({entry["key"] for record in found for entry in record["scoring"]["cache"]}) == 1


@pytest.mark.faults
def test_an_interrupted_sweep_of_processes_ends_with_its_table(tmp_path: Path) -> None:
    ways = ["interrupt", "wait", "wait2", "wait3"]  # none ends by itself on a slow machine
    done = sweep(tmp_path, ways, "hydra.launcher.n_jobs=2", launcher="joblib")
    assert done.returncode == 1, done.stderr
    assert len(states(done)) == 4
    assert set(states(done)) == {"failed", "not started"}, done.stdout
    assert "interrupted" in done.stderr


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "joblib"), ("ray_cluster", "ray")])
def test_a_missing_extra_is_one_line_with_the_command(
    launcher: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'pai\[{extra}\]'"):
        check("-m", *TINY, f"hydra/launcher={launcher}", "seed=0,1")


def test_flags_may_stand_between_overrides() -> None:
    register_resolvers()
    arguments = _parse(["model.depth=8", "-m", "seed=0,1"])
    found = compose_jobs(arguments)
    assert arguments.multirun
    assert [(job.config["model"]["depth"], job.config["seed"]) for job in found] == [(8, 0), (8, 1)]
