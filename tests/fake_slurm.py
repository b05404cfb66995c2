"""The commands of SLURM that submitit calls, played by one script on this machine.

A cluster without accounting whose jobs begin at once. ``FAKE_SLURM`` is the folder of its queue;
``FAKE_SLURM_CANCELLED`` names a job that leaves the queue before it begins, and
``FAKE_SLURM_REFUSES`` what ``sbatch`` says instead of taking jobs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "srun")
ARRAY = 7
_AGAIN = ".again"
_RUN = f'bash "$0"; while rm "$1{_AGAIN}" 2>/dev/null; do bash "$0"; done; rm "$1"'


def install(folder: Path) -> dict[str, str]:
    """Write the commands below ``folder``; return the environment in which they are found."""
    binaries, queue = folder / "bin", folder / "queue"
    for made in (binaries, queue):
        made.mkdir()
    for name in COMMANDS:
        path = binaries / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{binaries}:{os.environ['PATH']}", "FAKE_SLURM": str(queue)}


def _sbatch(file: str) -> int:
    if refusal := os.environ.get("FAKE_SLURM_REFUSES"):
        print(
            f"sbatch: error: {refusal}\nsbatch: error: Batch job submission failed", file=sys.stderr
        )
        return 1
    (last,) = re.findall(r"--array=0-(\d+)", Path(file).read_text())
    for place in range(int(last) + 1):
        name = f"{ARRAY}_{place}"
        if name == os.environ.get("FAKE_SLURM_CANCELLED"):
            continue
        entry = Path(os.environ["FAKE_SLURM"]) / name
        entry.touch()
        job = {"SLURM_JOB_ID": str(100 + place), "SLURM_ARRAY_JOB_ID": str(ARRAY),
               "SLURM_ARRAY_TASK_ID": str(place), "SLURM_PROCID": "0"}  # fmt: skip
        subprocess.Popen(
            ["bash", "-c", _RUN, file, str(entry)], env={**os.environ, **job},
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
    print(f"Submitted batch job {ARRAY}")
    return 0


def _srun(*arguments: str) -> int:
    work = arguments[arguments.index(sys.executable) :]
    return subprocess.run(work, check=False).returncode


def _main(command: str, *arguments: str) -> int:
    queue = Path(os.environ["FAKE_SLURM"])
    if command == "sbatch":
        return _sbatch(*arguments)
    if command == "srun":
        return _srun(*arguments)
    if command == "squeue":
        print("\n".join(path.name for path in queue.iterdir() if path.suffix != _AGAIN))
        return 0
    if command == "scontrol":
        verb, name = arguments
        assert verb == "requeue"
        (queue / f"{name}{_AGAIN}").touch()
        return 0
    print("Slurm accounting storage is disabled", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
