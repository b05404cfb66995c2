"""Is the order of the scorers the same on images, a graph and text? Tables from stored runs.

    python scripts/study_tasks.py runs/study_tasks [--out DIR] [--reference snip]

Reads the runs of ``make study-tasks``, writes ``tables.md`` into their folder, or ``--out``. What
is measured: scripts/studies/tasks.py.
"""

import sys

from studies.command import parser, write_tables
from studies.stored import completed
from studies.tasks import correlation_table, metric_table, read

from pai.errors import ConfigError


def main() -> None:
    """Read the runs, write the tables; exit 1 with one line if it cannot be done."""
    made = parser(str(__doc__))
    made.add_argument("--reference", default="snip", help="scorer that the others differ from")
    arguments = made.parse_args()
    out = arguments.out or arguments.runs
    try:
        stored = completed(arguments.runs)
        tasks = read(stored.runs)
        tables = [correlation_table(tasks), metric_table(tasks, arguments.reference)]
    except ConfigError as error:
        sys.exit(f"study error: {error}")
    write_tables(tables, stored.left_out, out)


if __name__ == "__main__":
    main()
