"""Runs killed by SIGKILL at arbitrary moments and started again by the same command."""

import random
import time
from pathlib import Path

import pytest
from disturbed_runs import Moment, assert_same_end, complete, disturb
from tiny import TINY, record_in

ARGUMENTS = (
    *TINY, "training.epochs=12", "dataset.crop_padding=1", "training.mixup_alpha=0.2",
    "hydra.run.dir=run",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(*ARGUMENTS, cwd=tmp_path_factory.mktemp("undisturbed"))


def killed(folder: Path, moment: Moment) -> bool:
    """Kill the run at ``moment``; return whether it was at work until then."""
    phase, _, _ = disturb(*ARGUMENTS, cwd=folder, moment=moment)
    return phase != "ended"


def within_epoch(number: int, draws: random.Random) -> Moment:
    """Return a random moment in the epoch after ``number``; the run itself is the clock."""

    def wait(run_dir: Path) -> None:
        deadline, row_s = time.monotonic() + 120, 0.0
        for rows in range(len(record_in(run_dir)["history"]), number):
            began = time.monotonic()
            while len(record_in(run_dir)["history"]) <= rows:
                assert time.monotonic() < deadline, f"epoch {rows + 1} was not seen"
            row_s = time.monotonic() - began
        time.sleep(draws.uniform(0, row_s))

    return wait


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(
    undisturbed: Path, tmp_path: Path
) -> None:
    draws = random.Random(0)
    for number in (0, 2, 4, 6):  # of 12
        assert killed(tmp_path, within_epoch(number, draws))
        assert number <= len(record_in(tmp_path / "run")["history"]) < 12
    assert_same_end(complete(*ARGUMENTS, cwd=tmp_path), undisturbed)


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
    assert_same_end(complete(*ARGUMENTS, cwd=tmp_path), undisturbed)
