"""Runs that are killed, terminated or preempted at random moments: ``make faults``."""

import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from disturbed_runs import (
    EVERY_PHASE,
    after,
    assert_same_end,
    complete,
    disturb,
    disturb_writing,
)
from tiny import record_in

pytestmark = pytest.mark.faults
KILLS = 60


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(*EVERY_PHASE, cwd=tmp_path_factory.mktemp("undisturbed"))


def test_sixty_kills_lose_nothing(undisturbed: Path, tmp_path: Path) -> None:
    draws, work = random.Random(0), record_in(undisturbed)["timing_s"]["total"]
    kills: Counter[str] = Counter()
    runs, folder = 0, tmp_path / "0"
    while kills.total() < KILLS:
        folder.mkdir(exist_ok=True)
        at, _, _ = disturb(*EVERY_PHASE, cwd=folder, moment=after(draws, 0.7 * work))
        if at not in ("ended", "after the end"):
            kills[at] += 1
        elif record_in(folder / "run")["status"] == "completed":
            assert_same_end(complete(*EVERY_PHASE, cwd=folder), undisturbed)
            runs += 1
            folder = tmp_path / str(runs)
    folder.mkdir(exist_ok=True)
    assert_same_end(complete(*EVERY_PHASE, cwd=folder), undisturbed)
    print(f"\n{kills.total()} kills over {runs + 1} runs:", dict(kills))


def test_kills_while_a_file_is_written_lose_nothing(undisturbed: Path, tmp_path: Path) -> None:
    files = ("record.json", "scores.json", "mask.safetensors", "checkpoint.pt", "model.safetensors")
    for name in files:  # in the order in which a run, continued each time, comes to them
        times = 2 if name in ("record.json", "checkpoint.pt") else 1  # the first is there already
        at = disturb_writing(name, *EVERY_PHASE, cwd=tmp_path, times=times)
        assert at == f"writing {name.split('.')[0]}"
    assert_same_end(complete(*EVERY_PHASE, cwd=tmp_path), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_says_so_and_resumes(
    number: signal.Signals, undisturbed: Path, tmp_path: Path
) -> None:
    draws, work = random.Random(int(number)), record_in(undisturbed)["timing_s"]["total"]
    stopped = 0
    for _ in range(4):
        at, code, errors = disturb(
            *EVERY_PHASE, cwd=tmp_path, moment=after(draws, 0.4 * work), number=number
        )
        if at not in ("ended", "after the end"):
            assert code == 1, errors
            (line,) = errors.splitlines()[-1:]
            assert line.startswith(f"run error: Stopped: {number.name}; ")
            assert "continues" in line
            assert "Traceback" not in errors
            record = record_in(tmp_path / "run")
            assert record["status"] == "failed"
            assert record["error"] == f"Stopped: {number.name}"
            stopped += 1
    assert stopped >= 2
    assert_same_end(complete(*EVERY_PHASE, cwd=tmp_path), undisturbed)
