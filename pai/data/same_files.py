"""Which files have the same content, found without reading what need not be read."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence

from pai.errors import RunError

_TAIL = 4096


def file_fingerprints(paths: Sequence[str]) -> list[bytes]:
    """Return a fingerprint of each file; files have the same one if and only if they are equal.

    First sizes are compared, then the last 4 KiB of files of the same size (pictures often begin
    alike), and only files that agree in both are read as a whole.

    Raises:
        RunError: a file cannot be read.
    """
    prints = [b""] * len(paths)
    waiting = list(range(len(paths)))
    for look in (_size, _tail, _whole):
        for number in waiting:
            prints[number] += _looked_at(look, paths[number])
        counts = Counter(prints[number] for number in waiting)
        waiting = [number for number in waiting if counts[prints[number]] > 1]
    return prints


def _looked_at(look: Callable[[str], bytes], path: str) -> bytes:
    try:
        return look(path)
    except OSError as error:
        raise RunError(f"cannot read image {path}: {error}") from error


def _size(path: str) -> bytes:
    return os.stat(path).st_size.to_bytes(8)  # noqa: PTH116  (there may be millions)


def _tail(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return hashlib.blake2b(file.read(_TAIL), digest_size=16).digest()


def _whole(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return hashlib.file_digest(file, "blake2b").digest()
