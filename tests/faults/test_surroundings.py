"""What fails around a run: disk, data, W&B, a crowd of processes. ``make faults``."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbed_runs import EVERY_PHASE, assert_same_end, complete, finish, start
from tiny import TINY, image_folder, python, record_in

pytestmark = pytest.mark.faults


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of two MiB in memory, where that is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def only_line(errors: str) -> str:
    """Return the line that says what went wrong; nobody is shown a traceback."""
    assert "Traceback" not in errors
    return errors.splitlines()[-1]


@pytest.mark.parametrize("free_kib", [0, 4, 60, 200, 400])
def test_a_full_disk_ends_the_run_and_more_space_lets_it_go_on(
    free_kib: int, small_disk: Path, tmp_path: Path
) -> None:
    undisturbed = complete(*EVERY_PHASE, cwd=tmp_path)
    total = os.statvfs(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(max(0, total.f_bavail * total.f_frsize - 1024 * (40 + free_kib))))
    code, errors = finish(start(*EVERY_PHASE, cwd=small_disk))
    if code != 0:
        assert code in (1, 2), errors
        assert "No space left" in only_line(errors)
        if (small_disk / "run" / "record.json").exists():
            assert record_in(small_disk / "run")["status"] in ("failed", "running")
    ballast.unlink()
    assert_same_end(complete(*EVERY_PHASE, cwd=small_disk), undisturbed)
    print(f"\n{free_kib} KiB:", only_line(errors) if errors else "enough")


def test_a_read_only_place_is_refused_before_the_work(small_disk: Path) -> None:
    remount(small_disk, "ro")
    try:
        code, errors = finish(start(*EVERY_PHASE, cwd=small_disk))
    finally:
        remount(small_disk, "rw")
    assert code == 2
    assert only_line(errors).startswith("config error: hydra.run.dir: run cannot be made")


def test_an_image_that_cannot_be_read_in_mid_epoch_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", per_class=60)
    arguments = (
        *TINY, "dataset=imagefolder_streamed", f"dataset.root={root}", "dataset.image_size=8",
        "dataset.resize_size=8", "dataset.num_workers=1", "training.epochs=4",
        "training.batch_size=8", "hydra.run.dir=run",
    )  # fmt: skip
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    undisturbed = complete(*arguments, cwd=folder)
    bad = root / "train" / "dark" / "30.png"
    kept = bad.read_bytes()
    process = start(*arguments, cwd=tmp_path)
    record = tmp_path / "run" / "record.json"
    while process.poll() is None and not (record.exists() and record_in(record.parent)["history"]):
        time.sleep(0.002)
    bad.write_bytes(kept[: len(kept) // 2])
    code, errors = finish(process)
    assert code == 1
    assert str(bad) in only_line(errors)
    assert str(bad) in record_in(tmp_path / "run")["error"]
    bad.write_bytes(kept)
    assert_same_end(complete(*arguments, cwd=tmp_path), undisturbed)


def test_a_server_that_does_not_answer_does_not_stop_the_run(tmp_path: Path) -> None:
    done = python(
        "-m", "pai", *TINY, "logger=wandb", "logger.mode=online", "logger.init_timeout_s=3",
        "hydra.run.dir=run", cwd=tmp_path,
        WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert record_in(tmp_path / "run")["status"] == "completed"
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_the_death_of_the_wandb_process_does_not_stop_the_run(tmp_path: Path) -> None:
    arguments = (*EVERY_PHASE, "logger=wandb", "logger.mode=offline")
    process = start(*arguments, cwd=tmp_path)
    record = tmp_path / "run" / "record.json"
    while process.poll() is None and not (record.exists() and record_in(record.parent)["history"]):
        time.sleep(0.002)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    assert children, "W&B has no process of its own"
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    code, errors = finish(process)
    assert code == 0, errors
    assert record_in(tmp_path / "run")["status"] == "completed"


def test_eight_processes_share_cache_and_data(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", per_class=30)
    cache = tmp_path / "cache"
    arguments = (
        *TINY, "dataset=imagefolder", f"dataset.root={root}", "dataset.image_size=8",
        "scorer=fts", "training.epochs=0",
    )  # fmt: skip
    running = [
        start(*arguments, f"hydra.run.dir=run{n}", f"sparsity={0.5 + n / 20}", cwd=tmp_path,
              PAI_CACHE=str(cache))
        for n in range(8)
    ]  # fmt: skip
    ends = [finish(process) for process in running]
    assert [code for code, _ in ends] == [0] * 8, ends
    hits = [record_in(tmp_path / f"run{n}")["scoring"]["cached"] for n in range(8)]
    assert hits.count(False) == 1, "the scores were computed more than once"
    assert not list(cache.rglob(".*.tmp"))
    alone = tmp_path / "alone"
    for n in range(8):
        done = python(
            "-m", "pai", *arguments, f"hydra.run.dir=alone/run{n}", f"sparsity={0.5 + n / 20}",
            "scoring.cache_dir=null", "dataset.cache_dir=null", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        shared = (tmp_path / f"run{n}" / "mask.safetensors").read_bytes()
        assert shared == (alone / f"run{n}" / "mask.safetensors").read_bytes()


def test_two_processes_in_one_directory_are_kept_apart(tmp_path: Path) -> None:
    long = (*EVERY_PHASE, "training.epochs=6000")  # longer than a second one takes to start
    first = start(*long, cwd=tmp_path)
    record = tmp_path / "run" / "record.json"
    while first.poll() is None and not (record.exists() and record_in(record.parent)["history"]):
        time.sleep(0.002)
    try:
        code, errors = finish(start(*long, cwd=tmp_path))
        assert first.poll() is None
    finally:
        first.kill()
        finish(first)
    assert code == 2
    assert "another process is running in" in only_line(errors)
    assert record_in(tmp_path / "run")["status"] == "running"
    shutil.rmtree(tmp_path / "run")
