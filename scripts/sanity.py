"""Print what methods gain over their altered masks: ``python scripts/sanity.py DIR``."""

import argparse
import sys
from pathlib import Path

from pai.records import read_records
from pai.reports.sanity import sanity_table


def main() -> None:
    """Parse the command line and print the table; exit 1 if the runs do not make one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a sweep directory")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        sys.exit(f"table error: {arguments.folder}: not a folder")
    try:
        print(sanity_table(read_records(arguments.folder)))
    except ValueError as error:
        sys.exit(f"table error: {error}")


if __name__ == "__main__":
    main()
