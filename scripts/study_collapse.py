"""Layer collapse: tables and a figure from the runs of ``make study-collapse``.

    python scripts/study_collapse.py runs/study_collapse [--out DIR] [--sparsities 0.9 0.99 ...]

The runs stored their scores; the masks of all sparsities are selected from them again. Runs with a
schedule of several rounds (synflow) have one mask each. Writes ``tables.md`` and ``collapse.png``
into the folder of the runs, or ``--out``. What is measured: scripts/studies/collapse.py.
"""

import sys

from studies.collapse import count_table, measure, onset_table
from studies.command import check_sparsities, parser, write_tables
from studies.stored import completed

from pai.errors import ConfigError
from pai.reports.extra import require

SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def main() -> None:
    """Read the runs, write tables and figure; exit 1 with one line if it cannot be done."""
    made = parser(str(__doc__))
    made.add_argument("--sparsities", type=float, nargs="+", default=list(SPARSITIES))
    made.add_argument("--figure-at", type=float, default=0.99, help="sparsity of the figure")
    arguments = made.parse_args()
    out = arguments.out or arguments.runs
    try:
        check_sparsities(arguments.sparsities)
        if arguments.figure_at not in arguments.sparsities:
            raise ConfigError(f"--figure-at: {arguments.figure_at:g} is not among --sparsities")
        require("matplotlib")
        stored = completed(arguments.runs)
        rows, onsets = measure(stored, arguments.sparsities)
        if all(row.sparsity != arguments.figure_at for row in rows):
            raise ConfigError(f"--figure-at: no run has a mask of {arguments.figure_at:g}")
    except ConfigError as error:
        sys.exit(f"study error: {error}")
    from studies.collapse_figure import write_figure

    write_tables([onset_table(rows, onsets), count_table(rows)], stored.left_out, out)
    write_figure(rows, arguments.figure_at, out / "collapse.png")


if __name__ == "__main__":
    main()
