"""What the scripts of the studies share: the command line and ``tables.md``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pai.errors import ConfigError
from pai.records import write_bytes_atomically
from pai.reports.collect import LeftOut

TABLES_FILE = "tables.md"


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser for the folder of the runs and ``--out``."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("runs", type=Path, help="the folder of the sweeps")
    made.add_argument("--out", type=Path, help="folder for what is written; default: the runs'")
    return made


def check_sparsities(sparsities: Sequence[float]) -> None:
    """Raise :class:`ConfigError` unless all are at least 0 and below 1."""
    if not all(0 <= sparsity < 1 for sparsity in sparsities):
        raise ConfigError("--sparsities: each must be at least 0 and below 1")


def write_tables(tables: Sequence[str], left_out: Sequence[LeftOut], out: Path) -> None:
    """Write the Markdown tables into ``out``, which is made if needed, and print them.

    Below them stands which runs are left out, and why.
    """
    out.mkdir(parents=True, exist_ok=True)
    told = [f"- left out: {each.folder}: {each.reason}" for each in left_out]
    text = "\n\n".join([*tables, *(["\n".join(told)] if told else [])]) + "\n"
    write_bytes_atomically(out / TABLES_FILE, text.encode())
    print(text)
