"""Print what methods gain over their altered masks: ``python scripts/sanity.py DIR``."""

import argparse
import sys
from pathlib import Path

from pai.errors import ConfigError
from pai.reports.collect import collect
from pai.reports.sanity import sanity_table


def main() -> None:
    """Parse the command line and print the table; exit 1 if the runs do not make one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a sweep directory")
    arguments = parser.parse_args()
    try:
        print(sanity_table(collect(arguments.folder)))
    except ConfigError as error:
        sys.exit(f"table error: {error}")


if __name__ == "__main__":
    main()
