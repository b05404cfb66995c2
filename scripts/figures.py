"""Draw the figures of all runs below some folders as PNG and PDF."""

import sys
from pathlib import Path

from pai.errors import ConfigError
from pai.reports.collect import collect
from pai.reports.options import layout, parser
from pai.reports.write import KINDS, write_figures


def main() -> None:
    """Parse the command line and write the figures; exit 1 with one line if there are none."""
    arguments = parser(str(__doc__), out="folder for the figures (the first folder)").parse_args()
    out: Path = arguments.out or arguments.folders[0]
    try:
        images = write_figures(collect(*arguments.folders), layout(arguments), out)
    except ConfigError as error:
        sys.exit(f"figure error: {error}")
    if not images:
        sys.exit("figure error: no completed runs to draw")
    for name in images:
        print(" ".join(str(out / f"{name}.{kind}") for kind in KINDS))


if __name__ == "__main__":
    main()
