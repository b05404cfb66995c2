"""Is the order of the scorers the same on images, a graph and text? Tables from stored runs.

    python scripts/study_tasks.py runs/study_tasks [--out DIR] [--reference snip]

Reads the runs of ``make study-tasks``, writes ``tables.md`` into their folder, or ``--out``. What
is measured: scripts/studies/tasks.py.
"""

import argparse
import sys
from pathlib import Path

from studies.tasks import correlation_table, metric_table, read

from pai.errors import ConfigError
from pai.records import write_bytes_atomically


def main() -> None:
    """Read the runs, write the tables; exit 1 with one line if it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, help="the folder of the sweeps")
    parser.add_argument("--out", type=Path, help="folder for tables.md; default: that of the runs")
    parser.add_argument("--reference", default="snip", help="scorer that the others differ from")
    arguments = parser.parse_args()
    out = arguments.out or arguments.runs
    try:
        tasks = read(arguments.runs)
        text = f"{correlation_table(tasks)}\n\n{metric_table(tasks, arguments.reference)}\n"
    except ConfigError as error:
        sys.exit(f"study error: {error}")
    out.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(out / "tables.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
