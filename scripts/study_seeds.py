"""Seeds: tables and a figure from the runs of ``make study-seeds``.

    python scripts/study_seeds.py runs/study_seeds [--out DIR] [--sparsities 0.9 0.98]

The runs stored their scores; masks are selected from them. Writes ``tables.md`` and ``seeds.png``
into the folder of the runs, or ``--out``. What is measured: scripts/studies/seeds.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from studies.command import check_sparsities, parser, write_tables
from studies.seeds import (
    Agreement,
    accuracy_table,
    agreements,
    curve,
    curve_table,
    default_table,
)
from studies.stored import completed

from pai.errors import ConfigError
from pai.reports.extra import require
from pai.reports.write import write_png


def write_figure(found: Sequence[Agreement], path: Path) -> None:
    """Draw the IoU of masks with independent probes against their number, as PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    sparsities = sorted({a.sparsity for a in found})
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(3.6 * len(sparsities), 3.2), layout="constrained")
        axes = figure.subplots(1, len(sparsities), squeeze=False, sharey=True)[0]
        for axis, sparsity in zip(axes, sparsities, strict=True):
            for name, points in curve(found).items():
                here = [(n, a) for n, a in points if a.sparsity == sparsity]
                numbers = [n for n, _ in here]
                (line,) = axis.plot(numbers, [a.iou.mean for _, a in here], "o-", ms=3, label=name)
                axis.fill_between(
                    numbers, [a.iou.low for _, a in here], [a.iou.high for _, a in here],
                    color=line.get_color(), alpha=0.2, linewidth=0,
                )  # fmt: skip
                chance = [a.by_chance for _, a in here]
                axis.plot(numbers, chance, ":", color=line.get_color(), linewidth=0.8)
            axis.set_xscale("log", base=2)
            axis.set(xlabel="probes or draws", ylim=(0, 1), title=f"sparsity {sparsity:g}")
        axes[0].set_ylabel("IoU of masks, independent probes")
        axes[-1].legend(frameon=False)
        write_png(figure, path)


def main() -> None:
    """Read the runs, write tables and figure; exit 1 with one line if it cannot be done."""
    made = parser(str(__doc__))
    made.add_argument("--sparsities", type=float, nargs="+", default=[0.9, 0.98])
    arguments = made.parse_args()
    out = arguments.out or arguments.runs
    try:
        check_sparsities(arguments.sparsities)
        require("matplotlib")
        stored = completed(arguments.runs)
        found = agreements(stored, arguments.sparsities)
        tables = [default_table(found), curve_table(found), accuracy_table(stored.runs)]
    except ConfigError as error:
        sys.exit(f"study error: {error}")
    write_tables(tables, stored.left_out, out)
    write_figure(found, out / "seeds.png")


if __name__ == "__main__":
    main()
