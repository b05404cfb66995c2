"""The table at the end of a sweep: which jobs are done, which failed and why."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pai.records import read_record


def sweep_table(
    run_dirs: Sequence[Path], reasons: Mapping[Path, str] | None = None
) -> tuple[str, int]:
    """Return a table with one line per job, and how many jobs are not completed.

    Args:
        run_dirs: of the jobs, in their order.
        reasons: why a job failed that has not got as far as a record that says so.
    """
    rows, failed = [], 0
    for run_dir in run_dirs:
        record = read_record(run_dir)
        status = "not started" if record is None else str(record["status"])
        failed += status != "completed"
        if record is not None and status == "completed":
            detail = f"test {record['metrics']['test_accuracy']:.2%}"
        else:
            reason = (record or {}).get("error") or (reasons or {}).get(run_dir) or ""
            detail = " ".join(str(reason).split())
        rows.append(f"{status:12} {run_dir.name}  {detail}".rstrip())
    return "\n".join(rows), failed
