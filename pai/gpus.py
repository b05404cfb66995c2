"""One GPU for each job of a sweep: the jobs of this machine share out the GPUs by file locks.

A job holds the lock of its GPU while it runs and the system gives it back however the job ends, so
nobody has to be asked who is alive. Locks are named by what identifies a GPU on the machine, not by
its number in a process, which ``CUDA_VISIBLE_DEVICES`` changes.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

from pai.errors import ConfigError

JOBS_PER_GPU = "PAI_JOBS_PER_GPU"
"""Environment variable: how many jobs of sweeps may share a GPU (1)."""

_POLL_S = 0.5
_own: ContextVar[int | None] = ContextVar("number of this job's GPU", default=None)


def own_gpu() -> int | None:
    """Return the number, in this process, of the GPU that this job holds; ``None`` without one."""
    return _own.get()


def visible_gpus() -> list[str]:
    """Return what identifies each GPU that this process sees, in torch's order."""
    import torch

    count = torch.cuda.device_count()
    return [str(torch.cuda.get_device_properties(number).uuid) for number in range(count)]


def lock_folder() -> Path:
    """Return the folder of this user's locks on this machine."""
    return Path(tempfile.gettempdir()) / f"pai-gpus-{os.getuid()}"


def jobs_per_gpu() -> int:
    """Return how many jobs may share a GPU.

    Raises:
        ConfigError: the environment variable is no positive number.
    """
    text = os.environ.get(JOBS_PER_GPU, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{JOBS_PER_GPU}: {text!r} is not a number of jobs, 1 or more")
    return int(text)


@contextmanager
def a_gpu(
    gpus: Sequence[str], folder: Path, per_gpu: int, on_wait: Callable[[], None] = lambda: None
) -> Iterator[int | None]:
    """Hold one of ``gpus`` in the block, one with the fewest jobs; wait while all are taken.

    Args:
        gpus: what identifies each; without any the block runs at once.
        folder: of the locks.
        per_gpu: how many jobs may hold the same GPU.
        on_wait: called once if there is none to have.

    Yields:
        The position in ``gpus``; :func:`own_gpu` gives it too.
    """
    if not gpus:
        yield None
        return
    places = [(number, f"{gpus[number]}-{job}.lock") for job in range(per_gpu)
              for number in range(len(gpus))]  # fmt: skip
    waited = False
    while True:
        for number, name in places:
            lock = _take(folder / name)
            if lock is not None:
                token = _own.set(number)
                try:
                    yield number
                finally:
                    _own.reset(token)
                    lock.release()
                return
        if not waited:
            on_wait()
            waited = True
        time.sleep(_POLL_S)


def _take(path: Path) -> FileLock | None:
    """Return the lock at ``path``, held, or ``None`` if another process (or thread) holds it.

    Raises:
        OSError: the folder cannot be written.
        NotImplementedError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock
