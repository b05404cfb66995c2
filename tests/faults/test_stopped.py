"""Runs that are killed, terminated or preempted at random moments: ``make faults``."""

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from disturbed_runs import EVERY_PHASE, after, assert_same_end, complete, disturb
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
    files = ("scores.json", "mask.safetensors", "record.json", "checkpoint.pt", "model.safetensors")
    hit: list[str] = []
    for name in files:  # in the order in which a run, continued each time, comes to them

        def while_written(run_dir: Path, name: str = name) -> None:
            deadline = time.monotonic() + 30
            while not list(run_dir.glob(f".{name}.*.tmp")) and time.monotonic() < deadline:
                pass

        at, _, _ = disturb(*EVERY_PHASE, cwd=tmp_path, moment=while_written)
        hit += [at] if at == f"writing {name}" else []
        for left in tmp_path.glob("run/.*.tmp"):
            assert left.name.split(".")[1] in name
    assert_same_end(complete(*EVERY_PHASE, cwd=tmp_path), undisturbed)
    print("\nkilled while", hit)
    assert len(hit) >= 2


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
