"""``pai cache``: what the cache of decoded images and scores takes, and how to clear it."""

import argparse
import os
import sys
from pathlib import Path

from pai.console import one_line, shown

_KEY = "[0-9a-f]" * 64  # SHA-256; nothing else in a folder is an entry of the cache
_ENTRIES = (f"{_KEY}.safetensors", f"{_KEY}.lock", f".{_KEY}.*.tmp")
_GIB = 2**30


def folder() -> Path:
    """Return the default of every ``cache_dir`` in the configuration."""
    parent = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("PAI_CACHE") or f"{parent}/pai").expanduser()


def main(argv: list[str]) -> int:
    """Report or clear the cache; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="pai cache", description="Report the size of the cache of decoded images and scores."
    )
    parser.add_argument("--clear", action="store_true", help="remove all entries")
    parser.add_argument("--dir", type=Path, help="default: PAI_CACHE, or pai in ~/.cache")
    arguments = parser.parse_args(argv)
    try:
        place = arguments.dir or folder()
        files = [path for pattern in _ENTRIES for path in place.glob(pattern) if _is_file(path)]
        entries = [path for path in files if path.suffix == ".safetensors"]
        size = sum(map(_size, files)) / _GIB
        print(f"{shown(str(place))}: {len(entries)} entries, {size:.2f} GiB")
        if arguments.clear:
            for path in files:
                path.unlink(missing_ok=True)
            print("cleared")
    except RuntimeError:  # of expanduser
        name = "PAI_CACHE" if os.environ.get("PAI_CACHE") else "XDG_CACHE_HOME"
        value = os.environ.get(name)
        print(f"config error: {name}: {value!r}: there is no such home directory", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"run error: the cache: {one_line(str(error))}", file=sys.stderr)
        return 1
    return 0


def _is_file(path: Path) -> bool:
    """Return whether ``path`` is an entry, not a folder of somebody's that is named like one."""
    return path.is_symlink() or not path.is_dir()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a run has renamed or removed it meanwhile
        return 0
