"""Runs that are killed, terminated or preempted at random moments: ``make faults``."""

import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from fault_cases import ARGUMENTS, after, assert_same_end, disturb
from tiny import command, record_in

pytestmark = pytest.mark.faults
KILLS = 60


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = command(*ARGUMENTS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_sixty_kills_lose_nothing(undisturbed: Path, tmp_path: Path) -> None:
    draws, work = random.Random(0), record_in(undisturbed)["timing_s"]["total"]
    kills: Counter[str] = Counter()
    runs, folder = 0, tmp_path / "0"
    while kills.total() < KILLS:
        folder.mkdir(exist_ok=True)
        at, _, _ = disturb(folder, after(draws, 0.7 * work))
        if at not in ("ended", "after the end"):
            kills[at] += 1
        elif record_in(folder / "run")["status"] == "completed":
            done = command(*ARGUMENTS, cwd=folder)
            assert done.returncode == 0, done.stderr
            assert_same_end(folder / "run", undisturbed)
            runs += 1
            folder = tmp_path / str(runs)
    folder.mkdir(exist_ok=True)
    done = command(*ARGUMENTS, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert_same_end(folder / "run", undisturbed)
    print(f"\n{kills.total()} kills over {runs + 1} runs:", dict(kills))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_says_so_and_resumes(
    number: signal.Signals, undisturbed: Path, tmp_path: Path
) -> None:
    draws, work = random.Random(int(number)), record_in(undisturbed)["timing_s"]["total"]
    stopped = 0
    for _ in range(4):
        at, code, errors = disturb(tmp_path, after(draws, 0.4 * work), number)
        if at != "ended":
            assert code == 1, errors
            (line,) = errors.splitlines()[-1:]
            assert line.startswith("run error: KeyboardInterrupt")
            assert "continues" in line
            assert "Traceback" not in errors
            record = record_in(tmp_path / "run")
            assert record["status"] == "failed"
            assert record["error"].startswith("KeyboardInterrupt")
            stopped += 1
    assert stopped >= 2
    done = command(*ARGUMENTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "run", undisturbed)
