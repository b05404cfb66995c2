"""Runs of the command that are disturbed, and what must be left in the end."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tiny import TINY, command, environment, record_in, untimed

EVERY_PHASE = (
    *TINY, "training.epochs=6", "dataset.crop_padding=1", "training.mixup_alpha=0.2",
    "warmup=bn_exact", "scorer=fts", "scoring.samples_per_class=40", "hydra.run.dir=run",
)  # fmt: skip
"""A run that spends some time in each phase."""
FILES = ("mask.safetensors", "model.safetensors")
Moment = Callable[[Path], object]


def complete(*arguments: str, cwd: Path) -> Path:
    """Run ``python -m pai`` to its end, which must be a good one; return its directory ``run``."""
    done = command(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "run"


def start(*arguments: str, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """Start ``python -m pai`` and return the process; its output is kept."""
    return subprocess.Popen(
        [sys.executable, "-m", "pai", *arguments], cwd=cwd, env=environment(**variables), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


STALL = """
import os, time

rename, seen = os.replace, []

def stall(source, target, **options):
    seen.append(os.path.basename(target))
    if seen.count(os.environ["STALL_AT"]) == int(os.environ["STALL_NUMBER"]):
        os.truncate(source, os.path.getsize(source) // 2)
        open(os.environ["STALLED"], "w").close()
        time.sleep(600)
    return rename(source, target, **options)

os.replace = stall
"""


def disturb_writing(name: str, *arguments: str, cwd: Path, times: int = 1) -> str:
    """Kill a run when half of a file is written, for the ``times``-th time; return the phase."""
    hook, stalled = cwd / "hook", cwd / "stalled"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(STALL)
    stalled.unlink(missing_ok=True)

    def there(run_dir: Path) -> None:
        deadline = time.monotonic() + 240
        while not stalled.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    at, _, _ = disturb(
        *arguments, cwd=cwd, moment=there, STALL_AT=name, STALL_NUMBER=str(times),
        STALLED=str(stalled), PYTHONPATH=f"{hook}:{environment()['PYTHONPATH']}",
    )  # fmt: skip
    return at


def finish(process: subprocess.Popen[str], timeout_s: float = 300) -> tuple[int, str]:
    """Wait for the process; return its exit code and what it wrote to its standard error."""
    _, errors = process.communicate(timeout=timeout_s)
    return process.returncode, errors


def disturb(
    *arguments: str, cwd: Path, moment: Moment, number: signal.Signals = signal.SIGKILL,
    **variables: str,
) -> tuple[str, int, str]:  # fmt: skip
    """Start a run in ``cwd / "run"`` and send it a signal.

    Args:
        arguments: of the command.
        cwd: where it is started.
        moment: called with the run's directory as soon as the run works; it returns when the
            signal is to be sent.
        number: the signal.
        variables: of the environment, as for :func:`start`.

    Returns:
        The phase that the run was in (``"ended"`` if it was over), exit code, standard error.
    """
    run_dir = cwd / "run"
    record = run_dir / "record.json"
    before = record.stat().st_mtime_ns if record.exists() else None
    process = start(*arguments, cwd=cwd, **variables)
    try:
        while process.poll() is None and (
            not record.exists() or record.stat().st_mtime_ns == before
        ):
            time.sleep(0.001)
        if process.poll() is None:
            moment(run_dir)
        over = process.poll() is not None
        process.send_signal(number)
        code, errors = finish(process)
    finally:
        process.kill()
    return ("ended" if over else phase(run_dir)), code, errors


def phase(run_dir: Path) -> str:
    """Return what a run that was stopped had been doing, from what it left."""
    unfinished = sorted(path.name.split(".")[1] for path in run_dir.glob(".*.tmp"))
    if unfinished:
        return f"writing {unfinished[0]}"
    record = record_in(run_dir)
    if record["status"] == "completed":
        return "after the end"
    if record["mask"] is not None:
        return "training"
    return "scoring" if record["warmup"] is not None else "warmup or scoring"


def after(draws: random.Random, seconds: float) -> Moment:
    """Return the moment at a random time within ``seconds``."""
    return lambda run_dir: time.sleep(draws.uniform(0, seconds))


def assert_same_end(run_dir: Path, undisturbed: Path) -> None:
    """Compare all that a run leaves, times aside, bit for bit."""
    for name in FILES:
        assert (run_dir / name).read_bytes() == (undisturbed / name).read_bytes()
    ours, theirs = record_in(run_dir), record_in(undisturbed)
    for key in ("status", "error", "metrics", "mask", "cost", "warmup", "data", "config"):
        assert ours[key] == theirs[key], key
    assert untimed(ours["history"]) == untimed(theirs["history"])
    files = [{path.name for path in folder.iterdir()} for folder in (run_dir, undisturbed)]
    assert files[0] == files[1]
