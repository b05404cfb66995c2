"""Runs killed by SIGKILL at arbitrary moments and started again by the same command."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import TINY, command, environment, record_in, untimed

ARGUMENTS = (
    *TINY, "training.epochs=8", "dataset.crop_padding=1", "training.mixup_alpha=0.2",
    "hydra.run.dir=run",
)  # fmt: skip
Moment = Callable[[Path], None]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = command(*ARGUMENTS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def killed(folder: Path, moment: Moment) -> bool:
    """Start the run, kill it at ``moment`` after it began to work; False if it ended before."""
    record = folder / "run" / "record.json"
    before = record.stat().st_mtime_ns if record.exists() else None
    process = subprocess.Popen(
        [sys.executable, "-m", "pai", *ARGUMENTS], cwd=folder, env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while process.poll() is None:
            if record.exists() and record.stat().st_mtime_ns != before:
                moment(folder / "run")
                return process.poll() is None
            time.sleep(0.001)
        return False
    finally:
        process.kill()
        process.wait()


def assert_same_end(run_dir: Path, undisturbed: Path) -> None:
    for name in ("mask.safetensors", "model.safetensors"):
        assert (run_dir / name).read_bytes() == (undisturbed / name).read_bytes()
    ours, theirs = record_in(run_dir), record_in(undisturbed)
    for key in ("status", "error", "metrics", "mask", "cost", "warmup", "data", "config"):
        assert ours[key] == theirs[key], key
    assert untimed(ours["history"]) == untimed(theirs["history"])
    assert {path.name for path in run_dir.iterdir()} == {
        path.name for path in undisturbed.iterdir()
    }


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(
    undisturbed: Path, tmp_path: Path
) -> None:
    draws, work = random.Random(0), record_in(undisturbed)["timing_s"]["total"]
    kills = sum(
        killed(tmp_path, lambda _: time.sleep(draws.uniform(0, 0.4 * work))) for _ in range(4)
    )
    assert kills >= 2
    done = command(*ARGUMENTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_run_killed_while_it_writes_a_checkpoint_ends_as_the_undisturbed_one(
    undisturbed: Path, tmp_path: Path
) -> None:
    def while_writing(run_dir: Path) -> None:
        deadline = time.monotonic() + 60
        while not list(run_dir.glob(".checkpoint.pt.*.tmp")):
            assert time.monotonic() < deadline, "no write was seen"

    assert killed(tmp_path, while_writing)
    assert killed(tmp_path, while_writing)
    done = command(*ARGUMENTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "run", undisturbed)
