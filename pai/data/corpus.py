"""Where text comes from: any file, or the sources of Python's standard library."""

import gzip
import hashlib
import lzma
import sysconfig
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pai.data.options import usable_path
from pai.errors import ConfigError

# Pure-Python modules that every supported version has as one file: about 0.8 MB.
_MODULES = (
    "argparse", "ast", "calendar", "csv", "dataclasses", "difflib", "enum", "fractions",
    "functools", "heapq", "ipaddress", "random", "shutil", "statistics", "textwrap", "threading",
    "uuid",
)  # fmt: skip
_UNPACK: dict[str, Callable[[bytes], bytes]] = {".xz": lzma.decompress, ".gz": gzip.decompress}


@dataclass(frozen=True)
class Source:
    """The files of a corpus, in order, and what tells whether they have changed."""

    paths: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]  # modification time in ns and size of each

    def read(self) -> str:
        """Return the text of all files, one after the other.

        Raises:
            ConfigError: a file cannot be read or unpacked, or is no UTF-8.
        """
        return "".join(_read(Path(path)) for path in self.paths)


def find_source(path: str | None) -> Source:
    """Return the file at ``path``, or the standard library's sources for ``None``.

    Raises:
        ConfigError: there is no such file.
    """
    if path is None:
        folder = Path(sysconfig.get_path("stdlib"))
        files = [folder / f"{name}.py" for name in _MODULES]
    else:
        files = [usable_path("dataset.path", path)]
    for file in files:
        if not file.is_file():
            hint = "give a text file" if path is not None else (
                "this Python has no sources of its library: give a text file, dataset.path=FILE"
            )  # fmt: skip
            raise ConfigError(f"dataset.path: {file} is not a file; {hint}")
    states = [file.stat() for file in files]
    return Source(
        tuple(map(str, files)), tuple((state.st_mtime_ns, state.st_size) for state in states)
    )


def text_sha256(text: str) -> str:
    """Return the SHA-256 of ``text`` in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> str:
    try:
        content = _UNPACK.get(path.suffix, bytes)(path.read_bytes())
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"dataset.path: {path} is no UTF-8 text: byte {error.start} is "
            f"{content[error.start]:#04x}; convert it, with iconv for instance"
        ) from error
    except MemoryError as error:
        raise ConfigError(
            f"dataset.path: {path} ({path.stat().st_size:,} bytes) is too large, unpacked and as "
            f"text, for the memory of this process"
        ) from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ConfigError(f"dataset.path: {path} cannot be read: {error}") from error
