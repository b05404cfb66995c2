"""Print what some rows of a table gain over others, paired by seed, with 95 % intervals."""

import sys

from pai.errors import ConfigError
from pai.reports.collect import collect
from pai.reports.grid import build_grid
from pai.reports.options import assignments, layout, parser
from pai.reports.paired import contrasts, gain_table
from pai.reports.table import remarks


def main() -> None:
    """Parse the command line and print the table; exit 1 if the runs do not make one."""
    made = parser(str(__doc__))
    made.add_argument(
        "--gain", nargs=2, action="append", required=True, metavar=("A", "B"),
        help="of A over B: scorer=hts scorer=snip; several keys with commas; repeatable",
    )  # fmt: skip
    arguments = made.parse_args()
    try:
        grid = build_grid(collect(*arguments.folders), layout(arguments))
        found = [
            contrast
            for first, second in arguments.gain
            for contrast in contrasts(grid, assignments(first), assignments(second))
        ]
    except ConfigError as error:
        sys.exit(f"table error: {error}")
    print(gain_table(grid, found))
    for line in remarks(grid):
        print(f"- {line}")


if __name__ == "__main__":
    main()
