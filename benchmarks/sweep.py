"""What a job of a sweep costs beyond its own work: ``python benchmarks/sweep.py``.

Runs sweeps of 1 and of N + 1 jobs, with and without W&B, in turn, each in a fresh process with the
basic launcher. The cost of a job is the difference divided by N; its own work is what its record
says it took in all. The network is small, nothing is trained, and scores are magnitudes, so what is
left is overhead: composing, checking, logging, tracking and files.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OVERRIDES = ("model.depth=8", "model.width=4", "training.epochs=0", "scorer=magnitude",
             "device=cpu")  # fmt: skip


def sweep(jobs: int, logger: str) -> tuple[float, list[float]]:
    """Run a sweep; return its seconds and what the record of each job says that it took."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = ",".join(map(str, range(jobs)))
        command = [sys.executable, "-m", "pai", "-m", *OVERRIDES, f"logger={logger}",
                   f"seed={seeds}", f"hydra.sweep.dir={folder}/sweep"]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(
            command, check=True, capture_output=True, env=os.environ | {"WANDB_MODE": "offline"}
        )
        seconds = time.perf_counter() - started
        records = [json.loads(path.read_text()) for path in Path(folder).rglob("record.json")]
        return seconds, [record["timing_s"]["total"] for record in records]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    whole: dict[str, list[float]] = {"none": [], "wandb": []}
    work: dict[str, list[float]] = {"none": [], "wandb": []}
    start: dict[str, list[float]] = {"none": [], "wandb": []}
    for _ in range(arguments.repeats):
        for logger in ("none", "wandb"):
            one, _ = sweep(1, logger)
            many, inside = sweep(arguments.jobs + 1, logger)
            start[logger].append(one)
            whole[logger].append((many - one) / arguments.jobs)
            work[logger].append(statistics.median(inside))
    print("| logger | sweep of one job, s | further job, s | its own work, s | beyond it, s |")
    print("|---|---|---|---|---|")
    for logger in ("none", "wandb"):
        one, more, own = (statistics.median(found[logger]) for found in (start, whole, work))
        print(f"| `{logger}` | {one:.1f} | {more:.2f} | {own:.2f} | {more - own:.2f} |")
    ratio = statistics.median(a / b for a, b in zip(whole["wandb"], whole["none"], strict=True))
    print(f"\nA job with W&B takes {ratio:.2f} times one without (median over repeats).")


if __name__ == "__main__":
    main()
