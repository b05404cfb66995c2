"""The jobs that a sweep has given to submitit: waiting for them, and how those of SLURM ended."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from pai.errors import RunError, first_line

SLURM = "submitit_slurm"
_SUFFIX = "_submitted.pkl"
_MOST_SECONDS = 60  # between two looks


@contextlib.contextmanager
def none_forgotten(launcher: str, options: Any, ends: list[str]) -> Iterator[None]:
    """Around the launch of jobs: wait for all of them where submitit stops at a killed one.

    Args:
        launcher: the choice of ``hydra/launcher``; nothing happens for those of other packages.
        options: its options; ``submitit_folder`` is where the files of the jobs are.
        ends: becomes what SLURM says of each job, in their order, if one was killed.

    Raises:
        RunError: SLURM has not taken the jobs.
    """
    if not launcher.startswith("submitit"):
        yield
        return
    folder = str(options.submitit_folder)
    before = submitted(folder)
    try:
        with _queue_asked_too() if launcher == SLURM else contextlib.nullcontext():
            yield
    except KeyboardInterrupt:
        arrays = {number.split("_")[0] for number in submitted(folder) - before}
        if launcher == SLURM and arrays:
            command = " ".join(["scancel", *sorted(arrays)])
            print(f"the jobs in the queue go on; {command} ends them", file=sys.stderr)
        raise
    except Exception as error:
        new = submitted(folder) - before
        if launcher != SLURM:
            _wait_for_local(new)
        elif new:
            with _queue_asked_too():
                ends += _wait_for_slurm(folder, new)
        else:
            raise RunError(f"hydra.launcher: SLURM took no job: {first_line(error)}") from error
        raise


def submitted(folder: str) -> set[str]:
    """Return the numbers of all jobs that have files in submitit's ``folder`` (with its ``%j``).

    A job of an array has the number ``7_0``, any other one ``7``, or its process id if it is local.
    """
    from submitit.core.utils import JobPaths

    root = JobPaths.get_first_id_independent_folder(folder)
    return {path.name.removesuffix(_SUFFIX) for path in root.rglob(f"*{_SUFFIX}")}


def _wait_for_local(numbers: set[str]) -> None:
    for number in numbers:  # children of this process
        with contextlib.suppress(ChildProcessError):
            os.waitpid(int(number), 0)


def _wait_for_slurm(folder: str, numbers: set[str]) -> list[str]:
    """Wait until SLURM is done with the jobs of an array; return what it says of each."""
    from submitit import SlurmJob

    places = sorted(numbers, key=lambda number: [int(part) for part in number.split("_")])
    jobs: list[SlurmJob[Any]] = [SlurmJob(folder, number) for number in places]
    for job in jobs:
        job.wait()
    return [f"SLURM: job {job.job_id} {job.state}, output in {job.paths.stderr}" for job in jobs]


@contextlib.contextmanager
def _queue_asked_too() -> Iterator[None]:
    """Let submitit look into SLURM's queue, not only into its accounting.

    A cluster without accounting, or a job that was cancelled before it began, would otherwise be
    waited for without end.
    """
    from submitit import SlurmJob
    from submitit.slurm.slurm import SlurmInfoWatcher

    class Watcher(SlurmInfoWatcher):
        def update(self) -> None:
            waiting = self._registered - self._finished
            command = self._make_command()
            if command is None:
                return
            self._num_calls += 1
            self._info_dict |= self.read_info(_answer(command) or "")
            queue = _answer(["squeue", "-h", "-r", "-o", "%i", "-u", str(os.getuid())])
            if queue is not None:
                for number in waiting - set(queue.split()):
                    if not self.is_done(number, mode="cache"):
                        self._info_dict[number] = {"State": "left the queue"}
            self._last_status_check = time.time()
            self._finished |= {n for n in waiting if self.is_done(n, mode="cache")}

    before, SlurmJob.watcher = SlurmJob.watcher, Watcher(delay_s=_MOST_SECONDS)
    try:
        yield
    finally:
        SlurmJob.watcher = before


def _answer(command: list[str]) -> str | None:
    """Return what a command prints, or nothing if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
