"""Runs of several processes: ``torchrun``, gloo, CPU."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import CHECKOUT, TINY, plan, python, record_in, tiny_run, untimed

from pai import distributed
from pai.errors import ConfigError
from pai.plan import resolve_device
from pai.training.evaluate import evaluate
from pai.training.options import Training

pytestmark = pytest.mark.slow
TRUST = "PAI_TRUSTED_PACKAGES"
SETTINGS = (
    "model._target_=plain_models.fragile", "~model.depth", "~model.width", "~model.stem_stride",
    "training.epochs=3",
    "training.label_smoothing=0.1", "training.clip_grad_norm=1.0", "sparsity=0.5",
    "training.evaluation_batch_size=50", "scorer=snip",
)  # fmt: skip
TINY_OWN = tuple(text for text in TINY if not text.startswith("model."))


def torchrun(
    *arguments: str, cwd: Path, processes: int = 2, flags: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    path = f"{CHECKOUT}:{CHECKOUT / 'tests'}"
    variables = {"OMP_NUM_THREADS": "1", TRUST: "plain_models", "PYTHONPATH": path, **variables}
    return python(*launcher, "-m", "pai", *flags, *TINY_OWN, *arguments, cwd=cwd, **variables)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, in a directory that the main process chose by its clock."""
    folder = tmp_path_factory.mktemp("shared")
    done = torchrun(*SETTINGS, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy   test") == 1
    (record,) = folder.glob("runs/*/*/record.json")
    return record.parent


def test_two_processes_do_the_run_of_one(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST, "plain_models")
    alone, together = tiny_run(tmp_path, *SETTINGS), record_in(shared)
    assert together["environment"]["processes"] == 2
    assert together["status"] == "completed"
    for key in ("mask", "cost", "data", "seed"):
        assert together[key] == alone[key], key
    assert load_file(shared / "mask.safetensors").keys() == alone_weights(tmp_path, "mask").keys()
    for mine, theirs in zip(
        untimed(together["history"]), untimed(alone["history"]), strict=True
    ):  # fmt: skip
        assert mine == pytest.approx(theirs, rel=1e-4)
    for key, value in together["metrics"].items():
        assert value == pytest.approx(alone["metrics"][key], rel=1e-4), key
    weights = load_file(shared / "model.safetensors")
    for name, expected in alone_weights(tmp_path, "model").items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=1e-5)


def alone_weights(run_dir: Path, kind: str) -> dict[str, torch.Tensor]:
    return dict(load_file(run_dir / f"{kind}.safetensors"))


def test_only_the_main_process_leaves_files(shared: Path) -> None:
    files = {path.name for path in shared.parents[2].rglob("*") if path.is_file()}
    assert files == {
        "record.json", "mask.safetensors", "model.safetensors", "scores.json", "pai.log",
        "config.yaml", "hydra.yaml", "overrides.yaml",
    }  # fmt: skip


def test_a_process_that_breaks_ends_the_run_which_then_resumes_bit_for_bit(
    shared: Path, tmp_path: Path
) -> None:
    arguments = (*SETTINGS, "hydra.run.dir=run")
    broken = torchrun(*arguments, cwd=tmp_path, PAI_TEST_BREAK_AT_STEP="50")  # in the third epoch
    assert broken.returncode != 0
    assert "run error: process 1: RuntimeError: out of memory, say" in broken.stderr
    failed = record_in(tmp_path / "run")
    assert failed["status"] == "failed"
    assert len(failed["history"]) == 2
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    resumed = torchrun(*arguments, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for name in ("mask.safetensors", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (shared / name).read_bytes()
    ours, theirs = record_in(tmp_path / "run"), record_in(shared)
    assert ours["metrics"] == theirs["metrics"]
    assert untimed(ours["history"]) == untimed(theirs["history"])
    again = torchrun(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert record_in(tmp_path / "run") == ours


def test_a_sweep_stops_at_a_bad_loss_that_all_processes_see(tmp_path: Path) -> None:
    arguments = (
        *SETTINGS, "training.epochs=1", "training.optimizer.lr=0.1,1e30,0.2",
        "hydra.sweep.dir=sweep",
    )  # fmt: skip
    done = torchrun(*arguments, cwd=tmp_path, processes=3, flags=("-m",))
    assert done.returncode != 0
    records = [record_in(path.parent) for path in (tmp_path / "sweep").glob("*/record.json")]
    assert sorted(record["status"] for record in records) == ["completed", "failed"]
    (failed,) = [record for record in records if record["status"] == "failed"]
    assert "the training loss became" in failed["error"]
    assert "run error: process 1: the training loss became" in done.stderr
    assert "not started" in done.stdout


def test_evaluation_uses_the_batchnorm_statistics_that_are_saved(tmp_path: Path) -> None:
    overrides = ("model.depth=8", "model.width=4", "training.epochs=2", "hydra.run.dir=run")
    done = torchrun(*overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record, tiny = record_in(tmp_path / "run"), plan("training.epochs=2")
    model, data = tiny.build_model(), tiny.dataset.load()
    model.load_state_dict(alone_weights(tmp_path / "run", "model"))
    test = evaluate(model, data.batches(data.test, 512))
    assert record["metrics"]["test_loss"] == pytest.approx(test.loss, rel=1e-5)
    assert record["metrics"]["test_accuracy"] == pytest.approx(test.accuracy)


def test_a_mistake_is_one_line_of_one_process(tmp_path: Path) -> None:
    done = torchrun("training.sync_batchnorm=true", "training.epochs=1", cwd=tmp_path)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("config error")]
    assert "training.sync_batchnorm: torch synchronises BatchNorm on CUDA devices only" in line
    assert list(tmp_path.iterdir()) == []


def options(**others: Any) -> Training:
    changed = plan().training.__dict__ | others
    return Training(**changed)


def test_batches_that_cannot_be_shared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    cpu = torch.device("cpu")
    options(batch_size=8, evaluation_batch_size=4).check(cpu)
    with pytest.raises(ConfigError, match=r"^training\.batch_size: 7 .* 4 processes; use 8"):
        options(batch_size=7).check(cpu)
    with pytest.raises(ConfigError, match=r"^training\.evaluation_batch_size: 3 .* use 4"):
        options(evaluation_batch_size=3).check(cpu)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device: 2 processes cannot share 'cuda:0'"):
        resolve_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"device: 'cuda:1' is not there"):
        resolve_device("cuda")


def test_without_torchrun_there_is_one_process_and_nothing_to_exchange() -> None:
    assert (distributed.launched(), distributed.rank(), distributed.world_size()) == (1, 0, 1)
    assert distributed.is_main()
    value, tensor = object(), torch.tensor([1.0, 2.0])
    assert distributed.broadcast_object(value) is value
    assert distributed.sum_over_processes(tensor) is tensor
    with distributed.process_group():
        assert not torch.distributed.is_initialized()
    assert tensor.tolist() == [1.0, 2.0]
