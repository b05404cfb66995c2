"""Locks on files: one process at a time, given back by the system however the process ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def take(path: Path) -> FileLock | None:
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


@contextmanager
def alone_in(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Be the only process that works in ``folder``; wait while another does.

    On a file system without locks this does nothing.

    Args:
        folder: made if needed; the lock is its file ``.lock``.
        on_wait: called once if there is another process.
    """
    path = folder / ".lock"
    try:
        lock = take(path)
    except NotImplementedError:
        yield
        return
    if lock is None:
        on_wait()
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def someone_in(folder: Path) -> bool:
    """Return whether a process holds the lock of :func:`alone_in`."""
    if not (folder / ".lock").exists():
        return False
    lock = take(folder / ".lock")
    if lock is not None:
        lock.release()
    return lock is None
