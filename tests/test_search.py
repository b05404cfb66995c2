"""Sweepers that choose the jobs as they go, by what the earlier ones have returned."""

import subprocess
from pathlib import Path

import pytest
from tiny import CHECKOUT, TINY, python, record_in

PLUGIN = '''
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper


@dataclass
class Options:
    _target_: str = "hydra_plugins.halving.Halving"
    jobs: int = 2


ConfigStore.instance().store(group="hydra/sweeper", name="halving", node=Options)


class Halving(Sweeper):
    """Goes from the end of an interval towards its start; does not know when to stop."""

    def __init__(self, jobs):
        self.jobs = jobs

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        parsed = OverridesParser.create().parse_overrides(arguments)
        fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
        (axis,) = (o for o in parsed if o.is_sweep_override())
        low, high = axis.value().start, axis.value().end
        for number in range(self.jobs):
            chosen = [*fixed, f"{axis.key_or_group}={high}"]
            (job,) = self.launcher.launch([chosen], initial_job_idx=number)
            high = (low + high) / 2 if job.return_value > 0 else low  # raises if the job failed
        if self.jobs > 2:
            raise RuntimeError("too many\\njobs")
'''


def search(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run a sweep by the sweeper above."""
    (folder / "hydra_plugins").mkdir()
    (folder / "hydra_plugins" / "halving.py").write_text(PLUGIN)
    return python(
        "-m", "pai", "-m", *TINY, "hydra/sweeper=halving", "sparsity=interval(0.2,0.8)",
        "hydra.sweep.dir=sweep", *overrides, cwd=folder, PYTHONPATH=f"{folder}:{CHECKOUT}",
    )  # fmt: skip


def sparsities(folder: Path) -> list[float]:
    """Return the sparsities of the completed jobs."""
    records = [record_in(path.parent) for path in (folder / "sweep").glob("*/record.json")]
    return sorted(r["config"]["sparsity"] for r in records if r["status"] == "completed")


def rows(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the states in the table of a sweep."""
    first = (line.split(" ")[0] for line in done.stdout.splitlines())
    return [word for word in first if word in ("completed", "failed", "running")]


def test_the_jobs_that_a_sweeper_chose_are_run_and_in_the_table(tmp_path: Path) -> None:
    done = search(tmp_path)
    assert done.returncode == 0, done.stderr
    assert sparsities(tmp_path) == [0.5, 0.8]
    assert rows(done) == ["completed"] * 2, done.stdout
    assert "run error" not in done.stderr


@pytest.mark.slow
def test_a_sweeper_that_raises_is_one_line_below_the_table(tmp_path: Path) -> None:
    done = search(tmp_path, "hydra.sweeper.jobs=3")
    assert done.returncode == 1
    assert sparsities(tmp_path) == [0.35, 0.5, 0.8]
    assert rows(done) == ["completed"] * 3, done.stdout
    assert done.stderr.splitlines()[-1] == (
        "run error: 0 of 3 jobs are not done; the sweep ended: RuntimeError: too many"
    )
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_job_that_fails_in_a_search_is_counted(tmp_path: Path) -> None:
    done = search(tmp_path, "training.optimizer.lr=1e30")
    assert done.returncode == 1
    assert sparsities(tmp_path) == []
    assert rows(done) == ["failed"], done.stdout
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("run error"))
    assert line.startswith("run error: 1 of 1 jobs are not done; the sweep ended: RunError: ")
