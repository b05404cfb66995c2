"""Report on all runs below some folders: tables, figures, one HTML file with everything."""

import sys
from pathlib import Path

from pai.errors import ConfigError
from pai.reports.collect import collect
from pai.reports.options import layout, parser
from pai.reports.table import markdown, remarks
from pai.reports.write import write_report


def main() -> None:
    """Parse the command line and write the report; exit 1 with one line if there is no table."""
    made = parser(str(__doc__), out="folder for the files (the first folder)")
    made.add_argument("--title", help="of the report (name of the first folder)")
    arguments = made.parse_args()
    out: Path = arguments.out or arguments.folders[0]
    title = arguments.title or arguments.folders[0].resolve().name
    try:
        grid = write_report(collect(*arguments.folders), layout(arguments), out, title)
    except ConfigError as error:
        sys.exit(f"report error: {error}")
    if grid is None:
        sys.exit(f"report error: the runs do not make a table; {out / 'report.html'} says why")
    print(markdown(grid))
    for line in remarks(grid):
        print(f"- {line}")
    print(f"\n{out / 'report.html'}")


if __name__ == "__main__":
    main()
