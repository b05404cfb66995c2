"""However a command ends, it says so in one line: what Hydra does around a run included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import CHECKOUT, TINY, command, environment, python, record_in

KEY = "0123456789abcdef0123456789abcdef01234567"
QUICK = (*TINY, "training.epochs=0")


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


@pytest.mark.parametrize(
    ("folder", "words"),
    [("x" * 300, "File name too long"), ("/proc/x", ""), ("/proc/self/x/y", "")],
)  # fmt: skip
def test_a_directory_that_cannot_be_is_named(folder: str, words: str, tmp_path: Path) -> None:
    done = command(*QUICK, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert done.returncode == 2
    line = only_line(done.stderr)
    assert line.startswith("config error: hydra.run.dir: ")
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "pai.log").mkdir(parents=True)
    done = command(*QUICK, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2
    line = only_line(done.stderr)
    assert line.startswith("config error: hydra.run.dir: run: [Errno 21] Is a directory: ")
    assert line.endswith("pai.log'")


@pytest.mark.parametrize(
    ("flags", "place", "file"),
    [([], "run", ".hydra/config.yaml"), (["-m"], "sweep", "multirun.yaml")],
    ids=["run", "sweep"],
)
def test_a_disk_that_is_full_at_the_start_is_one_line(
    flags: list[str], place: str, file: str, tmp_path: Path
) -> None:
    full = tmp_path / place / file
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    done = command(*flags, *QUICK, f"hydra.{place}.dir={place}", cwd=tmp_path)
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert line == f"run error: hydra.{place}.dir: {place}: [Errno 28] No space left on device"


def test_a_log_on_a_full_disk_does_not_cover_the_screen(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pai.log").symlink_to("/dev/full")
    done = command(*QUICK, "hydra.run.dir=run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert record_in(tmp_path / "run")["status"] == "completed"


@pytest.mark.parametrize("flags", [[], ["-m"]], ids=str)
def test_a_callback_that_cannot_be_built_is_one_line(flags: list[str], tmp_path: Path) -> None:
    callback = "+hydra.callbacks.x={_target_: users_own_parts.Range, low: 2, high: 1}"
    done = python(
        "-m", "pai", *flags, *QUICK, callback, cwd=tmp_path, PAI_TRUSTED_PACKAGES="users_own_parts",
        PYTHONPATH=f"{CHECKOUT}:{CHECKOUT / 'tests'}",
    )  # fmt: skip
    assert done.returncode == 2
    line = only_line(done.stderr)
    assert line.startswith("config error: Error in call to target 'users_own_parts.Range'")
    assert "low must not exceed high" in line


def test_a_run_that_diverged_is_not_said_to_continue(tmp_path: Path) -> None:
    done = command(*TINY, "training.optimizer.lr=1e30", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert line.startswith("run error: the training loss became ")
    assert "; see run/record.json and pai.log beside it; " in line
    assert line.endswith(
        "; the same command fails at the same step; another learning rate needs another "
        "hydra.run.dir"
    )


def test_messages_do_not_steer_the_terminal(tmp_path: Path) -> None:
    done = command(*TINY, "hydra.rnu='a\x1b]0;owned\x07\u202eb'", cwd=tmp_path)
    assert done.returncode == 2
    line = only_line(done.stderr)
    assert line.isprintable()
    assert "hydra.rnu='a\\x1b]0;owned\\x07\\u202eb'" in line


@pytest.mark.parametrize(
    "setting", ["scorer=${oc.env:WANDB_API_KEY}", "seed=${oc.env:WANDB_API_KEY}", f"model.{KEY}=1"]
)
def test_messages_do_not_hold_the_key_of_wandb(setting: str, tmp_path: Path) -> None:
    done = python("-m", "pai", *TINY, setting, cwd=tmp_path, WANDB_API_KEY=KEY)
    assert done.returncode == 2
    assert only_line(done.stderr).startswith("config error: ")
    assert KEY not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threads", ["99999999999999999999", "0"])
def test_a_number_of_threads_that_cannot_be_is_one_line(
    threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    done = python("-m", "pai", *QUICK, cwd=tmp_path, SLURM_CPUS_PER_TASK=threads)
    assert done.returncode == 2
    line = only_line(done.stderr)
    assert line == f"config error: SLURM_CPUS_PER_TASK: {threads} is no number from 1 to 4096"


def test_a_summary_that_nobody_reads_is_one_line(tmp_path: Path) -> None:
    quiet = "hydra.job_logging.handlers.console.stream=ext://sys.stderr"
    level = "hydra.job_logging.handlers.console.level=ERROR"
    script = (
        "import sys, pai.cli, pai.reports.summary as summary\n"
        "def summarise(record, run_dir): raise BrokenPipeError(32, 'Broken pipe')\n"
        "summary.summarise = summarise\n"
        f"sys.argv = ['pai', *{[*QUICK, quiet, level]!r}, 'hydra.run.dir=run']\n"
        "pai.cli.main()\n"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.returncode == 1
    assert only_line(done.stderr).startswith("run error: BrokenPipeError: [Errno 32] Broken pipe; ")
    assert record_in(tmp_path / "run")["status"] == "completed"


@pytest.mark.parametrize(
    ("arguments", "both"),
    [
        (["--version"], False), (["--info"], False), (["cache"], False), (["sparsty=1"], True),
        ([*QUICK, "hydra.run.dir=run"], False),
        ([*QUICK, "hydra.run.dir=run", "logger=wandb", "logger.mode=offline"], True),
        (["-m", *QUICK, "seed=0,1", "hydra.sweep.dir=sweep"], False),
        (["-m", *QUICK, "seed=0,1", "hydra.sweep.dir=sweep", "hydra/launcher=joblib"], True),
    ],
    ids=["version", "info", "cache", "mistake", "run", "wandb", "sweep", "joblib"],
)  # fmt: skip
def test_nobody_has_to_read_what_is_printed(
    arguments: list[str], both: bool, tmp_path: Path
) -> None:
    gone, end = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [sys.executable, "-m", "pai", *arguments], cwd=tmp_path, env=environment(),
        stdin=subprocess.DEVNULL, stdout=end, stderr=end if both else subprocess.PIPE,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    os.close(end)
    assert (done.returncode, done.stderr or "") == (2 if arguments == ["sparsty=1"] else 0, "")
    written = [record_in(path.parent)["status"] for path in tmp_path.rglob("record.json")]
    assert written == ["completed"] * (0 if len(arguments) == 1 else 1 + ("-m" in arguments))
