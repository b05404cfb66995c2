"""Layer collapse: tables and a figure from the runs of ``make study-collapse``.

    python scripts/study_collapse.py runs/study_collapse [--out DIR] [--sparsities 0.9 0.99 ...]

The runs stored their scores; the masks of all sparsities are selected from them again. Runs with a
schedule of several rounds (synflow) have one mask each. Writes ``tables.md`` and ``collapse.png``
into the folder of the runs, or ``--out``. What is measured: scripts/studies/collapse.py.
"""

import argparse
import sys
from pathlib import Path

from studies.collapse import count_table, measure, onset_table

from pai.errors import ConfigError
from pai.records import write_bytes_atomically
from pai.reports.extra import require

SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def main() -> None:
    """Read the runs, write tables and figure; exit 1 with one line if it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, help="the folder of the sweep")
    parser.add_argument("--out", type=Path, help="folder for tables and figure; default: the runs'")
    parser.add_argument("--sparsities", type=float, nargs="+", default=list(SPARSITIES))
    parser.add_argument("--figure-at", type=float, default=0.99, help="sparsity of the figure")
    arguments = parser.parse_args()
    out = arguments.out or arguments.runs
    try:
        if not all(0 <= sparsity < 1 for sparsity in arguments.sparsities):
            raise ConfigError("--sparsities: each must be at least 0 and below 1")
        if arguments.figure_at not in arguments.sparsities:
            raise ConfigError(f"--figure-at: {arguments.figure_at:g} is not among --sparsities")
        require("matplotlib")
        rows, onsets = measure(arguments.runs, arguments.sparsities)
    except ConfigError as error:
        sys.exit(f"study error: {error}")
    from studies.collapse_figure import write_figure

    out.mkdir(parents=True, exist_ok=True)
    text = f"{onset_table(rows, onsets)}\n\n{count_table(rows)}\n"
    write_bytes_atomically(out / "tables.md", text.encode())
    write_figure(rows, arguments.figure_at, out / "collapse.png")
    print(text)


if __name__ == "__main__":
    main()
