"""A folder of tensors by key, shared by all runs of a user: images decoded, networks scored once.

An entry is one safetensors file with the SHA-256 of its tensors. It is written to a temporary name
and renamed, so no reader ever sees half of it, and it is checked as a whole whenever it is read. Of
several processes that need the same new entry one computes it while the others wait; where the lock
cannot be had each computes it, and the last rename wins. The folder can be deleted at any time.
"""

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pai.finite import is_finite

_PATIENCE_S = 1800.0
_log = logging.getLogger("pai")

Tensors = dict[str, Tensor]


def cached(
    folder: Path | None,
    key: str,
    shapes: Mapping[str, Sequence[int]],
    compute: Callable[[], Tensors],
) -> tuple[Tensors, bool]:
    """Return the tensors of ``key``, and whether they came from ``folder``; if not, store them.

    A damaged entry is computed anew, and a folder that cannot be written only costs time: each is
    a warning. Tensors from the folder are on the CPU. What holds NaN or infinity is not stored.

    Args:
        folder: where entries are; ``None`` computes without storing.
        key: must determine the content completely.
        shapes: of the tensors by name; an entry with others counts as damaged.
        compute: makes the tensors.
    """
    if folder is None:
        return compute(), False
    entry = folder / f"{key}.safetensors"
    found, damage = _read(entry, shapes)
    if found is not None:
        return found, True
    if damage:
        _log.warning("cache: %s cannot be used (%s); it is computed anew", entry, damage)
    with _alone(entry.with_suffix(".lock")):
        found, _ = _read(entry, shapes)  # another process may have stored it meanwhile
        if found is not None:
            return found, True
        computed = compute()
        if all(is_finite(value) for value in computed.values()):
            _store(entry, computed)
        return computed, False


def _read(entry: Path, shapes: Mapping[str, Sequence[int]]) -> tuple[Tensors | None, str]:
    """Return the tensors if the entry is there and whole, and what is wrong with it otherwise."""
    try:
        if not entry.exists():
            return None, ""
        with safe_open(entry, framework="pt") as file:
            expected = (file.metadata() or {}).get("sha256")
            content: Tensors = {  # cloned, else they are the file, mapped
                name: file.get_tensor(name).clone()
                for name in file.keys()  # noqa: SIM118
            }
    except (SafetensorError, OSError) as error:
        return None, str(error)
    wanted = {name: torch.Size(shape) for name, shape in shapes.items()}
    if {name: tensor.shape for name, tensor in content.items()} != wanted:
        return None, "its tensors have other names or shapes"
    if checksum(content) != expected:
        return None, "its checksum is wrong"
    return {name: content[name] for name in shapes}, ""


def _store(entry: Path, computed: Tensors) -> None:
    temporary = entry.with_name(f".{entry.stem}.{secrets.token_hex(8)}.tmp")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            content = {name: t.detach().cpu().contiguous() for name, t in computed.items()}
            save_file(content, temporary, {"sha256": checksum(content)})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(entry)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # the latter: safetensors' own failed writes
        _log.warning("cache: nothing stored in %s: %s", entry.parent, error)


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes, whatever the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
