"""Sweeps on SLURM, whose commands are played by a script (``fake_slurm.py``)."""

import subprocess
import sys
from pathlib import Path

import fake_slurm
import pytest
from tiny import CHECKOUT, TINY, check, environment, record_in

from pai.errors import ConfigError

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=0")


def sweep(folder: Path, *overrides: str, **variables: str) -> subprocess.CompletedProcess[str]:
    python_path = f"{CHECKOUT}:{CHECKOUT / 'tests'}"
    return subprocess.run(
        [sys.executable, "-m", "pai", "-m", *TINY, *SLURM, "hydra.sweep.dir=sweep", *overrides],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200,
        check=False, env=environment(
            PYTHONPATH=python_path, PAI_TRUSTED_PACKAGES="failing_scorers",
            **fake_slurm.install(folder), **variables,
        ),
    )  # fmt: skip


@pytest.mark.slow
def test_killed_cancelled_and_preempted_jobs_do_not_hold_up_the_sweep(tmp_path: Path) -> None:
    done = sweep(
        tmp_path, "scorer._target_=failing_scorers.Ending", "+scorer.how=kill,preempt_once,well",
        FAKE_SLURM_CANCELLED=f"{fake_slurm.ARRAY}_2",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    killed, preempted, cancelled = done.stdout.splitlines()[-3:]
    assert killed.startswith("failed "), done.stdout + done.stderr
    assert "process of the job was killed" in killed
    assert "SLURM: job 7_0 left the queue, output in" in killed
    assert preempted.startswith("completed ")
    assert (tmp_path / "done-once").exists()
    assert cancelled.startswith("not started ")
    assert "SLURM: job 7_2 left the queue" in cancelled
    assert "run error: 2 of 3 jobs are not done" in done.stderr
    found = [record_in(path.parent) for path in (tmp_path / "sweep").glob("*/record.json")]
    assert sorted(record["status"] for record in found) == ["completed", "failed"]


def test_what_sbatch_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    refusal = "invalid partition specified: nope"
    done = sweep(tmp_path, "seed=0,1", FAKE_SLURM_REFUSES=refusal)
    assert done.returncode == 1
    expected = f"run error: hydra.launcher: SLURM took no job: sbatch: error: {refusal}"
    assert done.stderr.splitlines()[-1] == expected
    assert "Traceback" not in done.stdout + done.stderr
    assert "not started" not in done.stdout


def test_without_slurm_the_launcher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^hydra/launcher: submitit_slurm needs .*sbatch"):
        check("-m", *TINY, *SLURM, "seed=0,1")
