"""A folder of tensors by key, shared by all runs of a user, so that images are decoded once.

An entry is one safetensors file with a uint8 tensor and the SHA-256 of its bytes. It is written to
a temporary name and renamed, so no reader ever sees half of it, and it is checked as a whole
whenever it is read. Of several processes that need the same new entry one computes it while the
others wait; where the lock cannot be had each computes it, and the last rename wins. The folder can
be deleted at any time.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_PATIENCE_S = 1800.0
_log = logging.getLogger("pai")


def cached(
    folder: Path | None, key: str, shape: Sequence[int], compute: Callable[[], Tensor]
) -> Tensor:
    """Return the uint8 tensor of ``key``, from ``folder`` if it is there, else computed and stored.

    A damaged entry is computed anew, and a folder that cannot be written only costs time: each is
    a warning.

    Args:
        folder: where entries are; ``None`` computes without storing.
        key: must determine the content completely.
        shape: of the tensor; an entry of another shape counts as damaged.
        compute: makes the tensor.
    """
    if folder is None:
        return compute()
    entry = folder / f"{key}.safetensors"
    found, damage = _read(entry, shape)
    if found is not None:
        return found
    if damage:
        _log.warning("cache: %s cannot be used (%s); it is computed anew", entry, damage)
    with _alone(entry.with_suffix(".lock")):
        found, _ = _read(entry, shape)  # another process may have stored it meanwhile
        if found is None:
            found = compute()
            _store(entry, found)
    return found


def _read(entry: Path, shape: Sequence[int]) -> tuple[Tensor | None, str]:
    """Return the tensor if the entry is there and whole, and what is wrong with it otherwise."""
    try:
        if not entry.exists():
            return None, ""
        with safe_open(entry, framework="pt") as file:
            expected = (file.metadata() or {}).get("sha256")
            content: Tensor = file.get_tensor("content").clone()  # else it is the file, mapped
    except (SafetensorError, OSError) as error:
        return None, str(error)
    if content.dtype != torch.uint8 or content.shape != torch.Size(shape):
        return None, f"{content.dtype} of shape {tuple(content.shape)}, not {tuple(shape)}"
    if _checksum(content) != expected:
        return None, "its checksum is wrong"
    return content, ""


def _store(entry: Path, content: Tensor) -> None:
    temporary = entry.with_name(f".{entry.stem}.{secrets.token_hex(8)}.tmp")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            content = content.contiguous()
            save_file({"content": content}, temporary, {"sha256": _checksum(content)})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(entry)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # the latter: safetensors' own failed writes
        _log.warning("cache: nothing stored in %s: %s", entry.parent, error)


def _checksum(content: Tensor) -> str:
    return hashlib.sha256(content.numpy().data).hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock at ``path`` if it can be had; it saves work, nothing depends on it."""
    lock = FileLock(path, timeout=_PATIENCE_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _log.info("cache: another process makes %s; waiting for it", path.stem)
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # Timeout is an OSError
        _log.debug("cache: no lock at %s: %s", path, error)
    try:
        yield
    finally:
        lock.release()
