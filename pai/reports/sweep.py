"""The table at the end of a sweep: which jobs are done, which failed and why."""

from collections.abc import Sequence
from pathlib import Path

from pai.records import read_record


def sweep_table(run_dirs: Sequence[Path]) -> tuple[str, int]:
    """Return a table with one line per job, and how many jobs are not completed."""
    rows, failed = [], 0
    for run_dir in run_dirs:
        record = read_record(run_dir)
        status = "not started" if record is None else str(record["status"])
        failed += status != "completed"
        if record is not None and status == "completed":
            detail = f"test {record['metrics']['test_accuracy']:.2%}"
        else:
            detail = " ".join(str((record or {}).get("error") or "").split())
        rows.append(f"{status:12} {run_dir.name}  {detail}".rstrip())
    return "\n".join(rows), failed
