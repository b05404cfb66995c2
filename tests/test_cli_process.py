"""The command as a user meets it: exit codes, both output streams, files. Few, as each is slow."""

import os
import re
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from safetensors.torch import load_file
from tiny import CHECKOUT, TINY, command, image_folder, python, record_in

import pai

TABLE_LINE = re.compile(r"^(completed|failed|not started) +(\S+)", re.MULTILINE)


def test_a_run_prints_a_summary_and_leaves_its_files(tmp_path: Path) -> None:
    done = command(*TINY, "hydra.run.dir=out/run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    record = record_in(tmp_path / "out" / "run")
    assert record["status"] == "completed"
    assert f"sparsity {record['mask']['sparsity']:.4f}" in done.stdout
    assert f"test {record['metrics']['test_accuracy']:.2%}" in done.stdout
    assert done.stdout.rstrip().endswith("out/run")
    for layer in record["mask"]["layers"]:
        assert layer["name"] in done.stdout
    for name in ("mask.safetensors", "model.safetensors"):
        assert load_file(tmp_path / "out" / "run" / name)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = command(*TINY, "scorer=hst", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("config error: scorer: 'hst' is not a choice; did you mean 'hts'?")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--help"]], ids=" ".join)
def test_a_mistake_beside_a_question_is_one_line_too(flags: list[str], tmp_path: Path) -> None:
    done = command(*flags, "scorer=hst", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("config error: scorer: 'hst'")


def test_the_help_names_every_flag_that_works_and_no_other(tmp_path: Path) -> None:
    options = command("--help", cwd=tmp_path).stdout.rpartition("Options\n")[2]
    known = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    told = set(re.findall(r"(?<!\w)--?[a-z][a-z-]*", options))
    assert told == known - {"--experimental-rerun"} | {"--dry-run"}
    assert "Hydra's version" not in options


def test_a_run_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = command(*TINY, "hydra.run.dir=file/run", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("config error: hydra.run.dir: ")


def test_failed_work_is_one_line_with_the_traceback_in_the_log(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", per_class=6)
    bad = folder / "train" / "light" / "5.png"
    bad.write_bytes(bad.read_bytes()[:60])
    done = command(
        *TINY, "dataset=imagefolder", f"dataset.root={folder}", "hydra.run.dir=run", cwd=tmp_path
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"run error: cannot decode image {bad}")
    assert "Traceback" not in done.stdout
    record = record_in(tmp_path / "run")
    assert record["status"] == "failed"
    assert str(bad) in record["error"]
    log = (tmp_path / "run" / "pai.log").read_text()
    assert "Traceback" in log
    assert "RunError" in log


def test_a_sweep_goes_on_after_a_failed_job_and_repeats_only_that(tmp_path: Path) -> None:
    arguments = [
        "-m", *TINY, "training.optimizer.lr=1e30,1e-2", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "run error: 1 of 2 jobs are not done" in done.stderr.splitlines()[-1]
    assert "hydra.sweep.dir=sweep" in done.stderr
    table = TABLE_LINE.findall(done.stdout)
    assert [status for status, _ in table] == ["failed", "completed"]
    folders = [tmp_path / "sweep" / name for _, name in table]
    records = [record_in(folder) for folder in folders]
    assert [record["status"] for record in records] == ["failed", "completed"]
    assert "loss became" in records[0]["error"]
    assert "loss became" in done.stdout  # why, in the table
    assert "Traceback" in (folders[0] / "pai.log").read_text()

    before = [(folder / "record.json").stat().st_mtime_ns for folder in folders]
    again = command(*arguments, cwd=tmp_path)
    after = [(folder / "record.json").stat().st_mtime_ns for folder in folders]
    assert again.returncode == 1
    assert after[0] > before[0]
    assert after[1:] == before[1:]
    assert TABLE_LINE.findall(again.stdout) == table


def test_a_signal_that_comes_while_text_is_executed_ends_the_run_like_any_other(
    tmp_path: Path,
) -> None:
    done = python(
        "-m", "pai", *TINY, "scorer._target_=failing_scorers.Ending", "+scorer.how=stop_in_exec",
        "hydra.run.dir=run", cwd=tmp_path, PAI_TRUSTED_PACKAGES="failing_scorers",
        PYTHONPATH=f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'tests'}",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("run error: Stopped: SIGUSR2; see run/record.json")
    assert record_in(tmp_path / "run")["error"] == "Stopped: SIGUSR2"


INTERRUPTED_SWEEP = """
import sys
import pai.cli, pai.runner
def run(*arguments):
    print("JOB", file=sys.stderr)
    raise KeyboardInterrupt
pai.runner.run = run
sys.argv = ["pai", "-m", "seed=0,1,2", "hydra.sweep.dir=sweep", *{tiny!r}]
pai.cli.main()
"""


def test_an_interrupted_sweep_starts_no_further_job(tmp_path: Path) -> None:
    done = python("-c", INTERRUPTED_SWEEP.format(tiny=TINY), cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.splitlines().count("JOB") == 1
    assert "Traceback" not in done.stderr


def test_a_sweep_can_be_asked_for_by_an_override(tmp_path: Path) -> None:
    done = command(
        *TINY, "hydra.mode=MULTIRUN", "seed=0,1", "training.epochs=0", "hydra.sweep.dir=sweep",
        cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert [status for status, _ in TABLE_LINE.findall(done.stdout)] == ["completed"] * 2
    assert len(list((tmp_path / "sweep").glob("*/record.json"))) == 2


def test_the_version_is_that_of_pai(tmp_path: Path) -> None:
    done = command("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"pai {pai.__version__}\n")


def test_help_lists_the_choices_without_torch(tmp_path: Path) -> None:
    done = python("-X", "importtime", "-m", "pai", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for words in ("grad_norm", "bn_exact", "imagefolder", "sparsity: 0.9", "--multirun"):
        assert words in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pai.cli" in imported  # the list is what we think it is
    assert imported.isdisjoint({"torch", "torchvision", "timm", "wandb", "sklearn"})
    assert list(tmp_path.iterdir()) == []


def test_importing_pai_is_light(tmp_path: Path) -> None:
    heavy = ("torch", "numpy", "hydra", "omegaconf", "pydantic", "wandb")
    script = (
        "import sys, pai, pai.cli, pai.library\n"
        "assert {'select', 'load_scorer', 'apply_mask'} <= set(dir(pai))\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
        "print(pai.available_scorers()[0], 'torch' in sys.modules)\n"
        "pai.select, pai.prunable_parameters\n"
        "print('torch' in sys.modules)\n"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.stdout.splitlines() == ["[]", "fd False", "True"], done.stderr


def test_a_pickled_rerun_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.pickle").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    done = command("--experimental-rerun", "job.pickle", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("config error: --experimental-rerun")
    assert [path.name for path in tmp_path.iterdir()] == ["job.pickle"]
