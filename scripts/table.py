"""Print the table of all runs below some folders; with --out also write it as LaTeX and CSV."""

import sys

from pai.errors import ConfigError
from pai.reports.collect import collect
from pai.reports.grid import build_grid
from pai.reports.options import layout, parser
from pai.reports.table import markdown, remarks
from pai.reports.write import write_tables


def main() -> None:
    """Parse the command line and print the table; exit 1 if the runs do not make one."""
    arguments = parser(
        str(__doc__), out="folder for table.md, table.tex, table.csv, runs.csv"
    ).parse_args()
    try:
        collection = collect(*arguments.folders)
        grid = build_grid(collection, layout(arguments))
        if arguments.out:
            write_tables(collection, grid, arguments.out)
    except ConfigError as error:
        sys.exit(f"table error: {error}")
    print(markdown(grid))
    for line in remarks(grid):
        print(f"- {line}")


if __name__ == "__main__":
    main()
