"""``record.json``: everything a run knows about itself, written by rename so it is never torn."""

import errno
import fcntl
import json
import os
import reprlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE_NAME, HISTOGRAM_FILE = "record.json", "scores.json"
STATUSES = ("running", "completed", "failed")
PATIENCE_S = 10.0  # workers of a killed run notice its end within five seconds

# What is read again of a run that is continued or was completed.
_NUMBER = (int, float)
_OF_A_RUN: dict[str, Any] = {
    "config": dict, "mask": dict | None, "cost": dict | None, "metrics": dict, "history": list,
    "timing_s": dict, "environment": dict, "peak_memory_gib": float | int | None,
}  # fmt: skip
_OF_A_MASK: dict[str, Any] = {
    "sha256": str, "kept": int, "prunable": int, "all_parameters": int, "sparsity": _NUMBER,
    "effective_sparsity": float | int | None, "effective_undefined": str | None,
    "collapsed_layers": list, "dead_layers": list, "cut_at": str | None, "layers": list,
}  # fmt: skip
_OF_A_LAYER: dict[str, Any] = {"name": str, "total": int, "kept": int, "density": _NUMBER}
_OF_A_COST = dict.fromkeys(("forward_flops_dense", "forward_flops_masked"), _NUMBER)
_MEASURED = (
    "test_accuracy", "val_accuracy", "best_val_accuracy", "best_val_test_accuracy",
    "best_val_epoch",
)  # fmt: skip


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
        if path.is_file():
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
    if not path.is_file():
        raise ValueError(f"{path} is not a valid record: not a file")
    try:
        record = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError(f"{path} is not a valid record: nested too deeply") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a valid record: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is not a valid record: not a JSON object")
    return record


def read_run(run_dir: Path) -> dict[str, Any] | None:
    """Return the record in ``run_dir`` if it can be that of a run, or ``None`` if there is none.

    Raises:
        ValueError: the file is not a JSON object, or a part of it is missing or of another type
            than runs write; it is named.
    """
    record = read_record(run_dir)
    fault = None if record is None else _run_fault(record)
    if fault is not None:
        raise ValueError(f"{run_dir / FILE_NAME} is not a valid record: {fault}")
    return record


def _run_fault(record: dict[str, Any]) -> str | None:
    """Say what a record lacks that every run has, one with a mask or a completed one."""
    if record.get("status") not in STATUSES:
        return f"its status is {reprlib.repr(record.get('status'))}, not {', '.join(STATUSES)}"
    done = record["status"] == "completed"
    if fault := _kind_fault("", record, _OF_A_RUN):
        return fault
    if not all(isinstance(seconds, _NUMBER) for seconds in record["timing_s"].values()):
        return "its timing_s holds something else than numbers"
    if not isinstance(record.get("earlier_environments", []), list):  # older records lack it
        return f"its earlier_environments is {reprlib.repr(record['earlier_environments'])}"
    if done or record["mask"] is not None:
        fault = _kind_fault("mask.", record["mask"], _OF_A_MASK)
        for layer in record["mask"]["layers"] if fault is None else ():
            fault = fault or _kind_fault("mask.layers.", layer, _OF_A_LAYER)
        fault = fault or _kind_fault("cost.", record["cost"], _OF_A_COST)
    if done:
        measured = dict.fromkeys(_MEASURED, _NUMBER)
        fault = fault or _kind_fault("metrics.", record["metrics"], measured)
    return fault


def _kind_fault(section: str, found: Any, kinds: Mapping[str, Any]) -> str | None:
    if not isinstance(found, dict):
        return f"its {section.rstrip('.')} is {reprlib.repr(found)}"
    for key, kind in kinds.items():
        if key not in found:
            return f"it has no {section}{key}"
        if not isinstance(found[key], kind):
            return f"its {section}{key} is {reprlib.repr(found[key])}"
    return None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not (abs(value) <= 1.7976931348623157e308):
        return None
    return value
