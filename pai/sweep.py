"""A sweep: every job that is not done is launched; what fails neither stops nor hides the others.

The records in the run directories say what is done, so it does not matter in which processes the
launcher runs the jobs, nor how these end.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pai.compose import Job, opened
from pai.console import one_line, shown
from pai.errors import ConfigError, RunError, first_line
from pai.job import Task
from pai.overrides import quoted
from pai.records import FILE_NAME, PATIENCE_S, is_held, read_record, write_record
from pai.reports.sweep import sweep_table
from pai.submitted import SLURM, none_forgotten

KILLED = "the process of the job was killed, by hand, by the system (memory?) or by its launcher"
_POLL_S = 0.5
_log = logging.getLogger("pai")
_Reasons = dict[Path, str]


def run_sweep(arguments: argparse.Namespace, jobs: Sequence[Job]) -> int:
    """Run the jobs that are not completed, print the table of all; return the exit code."""
    if arguments.searches:
        return _search(arguments, jobs[0].sweep_dir)
    reasons: _Reasons = {}
    waiting = [job for job in jobs if _status(job) != "completed"]
    try:
        if waiting:
            _launch_all(arguments, waiting, reasons)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        waiting = [job for job in waiting if job.launcher != SLURM]  # its jobs go on
    except SystemExit as error:  # one of several processes of torchrun failed
        _log.debug("the sweep ends: %s", error)
    except RunError as error:
        print(f"run error: {one_line(str(error))}", file=sys.stderr)
        return 1
    _await_workers(waiting)
    for job in _dead(waiting):
        _bury(job, reasons)
    table, failed = sweep_table([job.run_dir for job in jobs], reasons)
    print(shown(table))
    if failed:
        print(
            f"run error: {failed} of {len(jobs)} jobs are not done; the same command with "
            f"hydra.sweep.dir={one_line(str(jobs[0].sweep_dir))} runs only those",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _launch_all(arguments: argparse.Namespace, jobs: Sequence[Job], reasons: _Reasons) -> None:
    """Launch the jobs; if a killed process takes others with it, launch those again.

    Which job brought a pool of processes down cannot be seen, so the ones that were at work then
    run one at a time, after all others.
    """
    waiting = list(jobs)
    before = {job.run_dir: _stamp(job) for job in jobs}
    broken = False
    while _launch(arguments, waiting, reasons):
        broken = True
        while any(is_held(job.run_dir) for job in jobs):  # Ray goes on with the others
            time.sleep(_POLL_S)
        untouched = [job for job in waiting if _stamp(job) == before[job.run_dir]]
        if len(untouched) == len(waiting):  # nothing was started: it would be the same again
            return
        waiting = untouched
        if not waiting:
            break
    for job in _dead(jobs) if broken else ():
        _log.info("alone, as its process was killed beside others: %s", job.run_dir.name)
        _launch(arguments, [job], reasons)


def _launch(arguments: argparse.Namespace, jobs: Sequence[Job], reasons: _Reasons) -> bool:
    """Launch jobs and wait for them; return whether a pool of processes has broken."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.core.utils import JobReturn, JobStatus
    from hydra.types import HydraContext, RunMode
    from omegaconf import OmegaConf

    with opened(arguments) as (name, overrides):
        hydra: Any = GlobalHydra.instance().hydra
        folder = jobs[0].sweep_dir.absolute()
        fixed = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(str(folder))}"]
        master = hydra.compose_config(
            name, [*overrides, *fixed], RunMode.MULTIRUN, with_log_configuration=True
        )
        hydra_context = HydraContext(hydra.config_loader, _callbacks(master))
        hydra_context.callbacks.on_multirun_start(config=master, config_name=name)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(master, folder / "multirun.yaml")
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=Task(), config=master
        )
        chosen = [
            [*(o for o in job.overrides if not o.startswith("hydra")),
             f"hydra.sweep.subdir={quoted(str(job.run_dir.relative_to(job.sweep_dir)))}"]
            for job in jobs
        ]  # fmt: skip
        returned: Sequence[JobReturn] = []
        ends: list[str] = []
        try:
            with none_forgotten(jobs[0].launcher, master.hydra.launcher, ends):
                returned = launcher.launch(chosen, initial_job_idx=0)
        except RunError:
            raise
        except Exception as error:  # noqa: BLE001  (a killed job, or no cluster; in the table)
            _log.info("the launcher: %s: %s", type(error).__name__, first_line(error))
            reasons |= {job.run_dir: f"{type(error).__name__}: {first_line(error)}" for job in jobs}
            reasons |= dict(zip((job.run_dir for job in jobs), ends, strict=False))
            return isinstance(error, BrokenProcessPool) or _is_ray_crash(error)
        for job, result in zip(jobs, returned, strict=True):
            if result.status == JobStatus.FAILED:
                reason = result._return_value  # `return_value` would print and raise it
                reasons[job.run_dir] = f"{type(reason).__name__}: {first_line(reason)}"
        hydra_context.callbacks.on_multirun_end(config=master, config_name=name)
    return False


def _search(arguments: argparse.Namespace, folder: Path) -> int:
    """Let a sweeper that chooses the jobs as it goes do so; return the exit code."""
    from hydra.core.global_hydra import GlobalHydra

    ended = ""
    with opened(arguments) as (name, overrides):
        hydra: Any = GlobalHydra.instance().hydra
        fixed = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(str(folder.absolute()))}"]
        try:
            hydra.multirun(name, Task(), [*overrides, *fixed])
        except KeyboardInterrupt:
            ended = "interrupted"
        except Exception as error:  # noqa: BLE001  (printed below; the records say the rest)
            ended = f"{type(error).__name__}: {first_line(error)}"
    run_dirs = sorted(path.parent for path in folder.rglob(FILE_NAME))
    table, failed = sweep_table(run_dirs)
    print(shown(table))
    if ended or failed:
        print(
            f"run error: {failed} of {len(run_dirs)} jobs are not done"
            f"{'; the sweep ended: ' if ended else ''}{one_line(ended)}",
            file=sys.stderr,
        )
    return 1 if ended or failed else 0


def _callbacks(master: Any) -> Any:
    from hydra._internal.callbacks import Callbacks

    return Callbacks(master)


def _is_ray_crash(error: Exception) -> bool:
    return type(error).__name__ in (
        "WorkerCrashedError",
        "OutOfMemoryError",
        "LocalRayletDiedError",
    )


def _status(job: Job) -> str:
    record = read_record(job.run_dir)
    return "not started" if record is None else str(record["status"])


def _stamp(job: Job) -> int | None:
    path = job.run_dir / "record.json"
    return path.stat().st_mtime_ns if path.exists() else None


def _dead(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that were at work when their process ended without a word."""
    return [j for j in jobs if _status(j) == "running" and not is_held(j.run_dir)]


def _await_workers(jobs: Sequence[Job]) -> None:
    """Wait for what killed jobs have left: their workers hold a run directory for a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and any(
        _status(job) == "running" and is_held(job.run_dir) for job in jobs
    ):
        time.sleep(_POLL_S)


def _bury(job: Job, reasons: _Reasons) -> None:
    record = read_record(job.run_dir)
    if record is None:
        raise ConfigError(f"hydra.sweep.dir: {job.run_dir} was removed while its job ran")
    said = reasons.get(job.run_dir, "") if job.launcher == SLURM else ""
    error = f"{KILLED}; {said}" if said else KILLED
    write_record(job.run_dir, record | {"status": "failed", "error": error})
