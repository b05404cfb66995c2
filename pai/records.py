"""``record.json``: everything a run knows about itself, written by rename so it is never torn."""

import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE_NAME, HISTOGRAM_FILE = "record.json", "scores.json"
PATIENCE_S = 10.0  # workers of a killed run notice its end within five seconds


class FolderInUseError(Exception):
    """Another process holds the folder."""


@contextmanager
def alone_in(folder: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold ``folder`` for this process inside the block; the end of the process frees it too.

    Nothing is written: the folder itself is locked. A file system that cannot lock folders is
    taken as it is.

    Raises:
        FolderInUseError: another process holds it, even after ``patience_s`` seconds.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise FolderInUseError(folder) from error
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                break
        yield
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Return whether a process holds ``folder`` by :func:`alone_in`."""
    try:
        with alone_in(folder, patience_s=0):
            return False
    except FolderInUseError:
        return True
    except FileNotFoundError:
        return False


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary name beside ``path``, flush it to disk, then rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_partial_writes(folder: Path) -> None:
    """Remove what :func:`write_bytes_atomically` leaves in ``folder`` if its process is killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Write ``record`` as ``run_dir/record.json``; non-finite numbers become ``null``."""
    text = json.dumps(_finite(record), indent=2, allow_nan=False) + "\n"
    write_bytes_atomically(run_dir / FILE_NAME, text.encode())


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """Return the record in ``run_dir``, or ``None`` if there is none.

    Raises:
        ValueError: the file is there but is not a JSON object; it is never silently replaced.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a valid record: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is not a valid record: not a JSON object")
    return record


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return all records below ``folder``, sorted by path."""
    records = (read_record(path.parent) for path in sorted(folder.rglob(FILE_NAME)))
    return [record for record in records if record is not None]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not (abs(value) <= 1.7976931348623157e308):
        return None
    return value
