from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import untimed
from torch import nn
from training_cases import ADAMW, NESTEROV, convnet, digits, random_mask, run, settings

from pai.data.bundle import DataBundle
from pai.errors import RunError
from pai.training.checkpoint import load_checkpoint
from pai.training.loop import train
from pai.training.optimizers import AdamW
from pai.training.options import Training

EPOCHS = 4
BATCHES_PER_EPOCH = 5
NESTEROV_ONLY, ADAMW_ONLY = settings(EPOCHS, NESTEROV), settings(EPOCHS, ADAMW)
EVERYTHING = settings(
    EPOCHS, AdamW(0.02, 0.1, decay_norms_and_biases=False), label_smoothing=0.1, mixup_alpha=0.5,
    clip_grad_norm=1.0, precision="bfloat16", channels_last=True, evaluation_batch_size=17,
)  # fmt: skip


class StoppedError(Exception):
    pass


def interrupt_after_epoch(model: nn.Module, folder: Path, options: Training, epoch: int) -> None:
    """Train until the checkpoint of ``epoch`` is written, then stop."""

    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] == epoch:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(
            model, random_mask(model), digits(), options, seed=0,
            checkpoint=folder / "checkpoint.pt", on_epoch=on_epoch,
        )  # fmt: skip


def interrupt_within_epoch(model: nn.Module, folder: Path, options: Training, epoch: int) -> None:
    """Train until the third batch after ``epoch``, then stop."""
    passes = 0

    def hook(module: nn.Module, _: Any) -> None:
        nonlocal passes
        passes += module.training
        if passes == epoch * BATCHES_PER_EPOCH + 3:
            raise StoppedError

    model.register_forward_pre_hook(hook)
    with pytest.raises(StoppedError):
        run(model, folder, options)


def assert_same_end(
    model: nn.Module, result: dict[str, Any], rows: list[dict[str, float]],
    undisturbed: nn.Module, expected: dict[str, Any],
) -> None:  # fmt: skip
    assert result["metrics"] == expected["metrics"]  # every bit
    assert untimed(result["history"]) == untimed(expected["history"])
    assert rows == result["history"]
    reference = undisturbed.state_dict()
    assert list(model.state_dict()) == list(reference)
    for name, value in model.state_dict().items():
        assert value.numpy().tobytes() == reference[name].numpy().tobytes(), name


@pytest.mark.parametrize(
    "options", [NESTEROV_ONLY, ADAMW_ONLY, EVERYTHING], ids=["nesterov", "adamw", "everything"]
)
@pytest.mark.parametrize("interrupt", [interrupt_after_epoch, interrupt_within_epoch])
@pytest.mark.parametrize("epoch", [1, 3])
def test_an_interrupted_run_ends_as_if_it_had_never_stopped(
    options: Training, interrupt: Any, epoch: int, tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    undisturbed = convnet()
    expected, _ = run(undisturbed, whole, options)
    interrupt(convnet(), part, options, epoch)
    state = load_checkpoint(part / "checkpoint.pt")
    assert state is not None and state["epoch"] == epoch
    assert untimed(state["history"]) == untimed(expected["history"][:epoch])
    torch.manual_seed(99)
    model = convnet(seed=5)  # all that matters is in the checkpoint
    result, rows = run(model, part, options)
    assert_same_end(model, result, rows, undisturbed, expected)


def test_a_run_interrupted_twice_ends_the_same_too(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    undisturbed = convnet()
    expected, _ = run(undisturbed, whole, settings(EPOCHS))
    interrupt_after_epoch(convnet(), part, NESTEROV_ONLY, 1)
    interrupt_after_epoch(convnet(), part, NESTEROV_ONLY, 2)
    model = convnet()
    result, rows = run(model, part, settings(EPOCHS))
    assert_same_end(model, result, rows, undisturbed, expected)


def test_a_run_interrupted_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    interrupt_within_epoch(convnet(), tmp_path, NESTEROV_ONLY, 0)
    assert list(tmp_path.iterdir()) == []
    model, undisturbed = convnet(), convnet()
    result, rows = run(model, tmp_path, settings(EPOCHS))
    (tmp_path / "whole").mkdir()
    expected, _ = run(undisturbed, tmp_path / "whole", settings(EPOCHS))
    assert_same_end(model, result, rows, undisturbed, expected)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    undisturbed = convnet()
    expected, _ = run(undisturbed, tmp_path, settings(EPOCHS))
    model = convnet(seed=5)
    passes: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: passes.append(module.training))
    result, rows = run(model, tmp_path, settings(EPOCHS))
    assert passes and not any(passes)
    assert_same_end(model, result, rows, undisturbed, expected)


def test_a_damaged_checkpoint_stops_the_run_before_it_trains(tmp_path: Path) -> None:
    run(convnet(), tmp_path, settings(1))
    path = tmp_path / "checkpoint.pt"
    damaged = path.read_bytes()[:-100]
    path.write_bytes(damaged)
    model = convnet()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(RunError, match=r"checkpoint\.pt"):
        run(model, tmp_path, settings(EPOCHS))
    assert path.read_bytes() == damaged


def test_the_checkpoint_on_disk_has_exact_zeros_too(tmp_path: Path) -> None:
    model = convnet()
    mask = random_mask(model)
    data: DataBundle = digits()
    run(model, tmp_path, settings(2), mask=mask, data=data)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state is not None
    for weights in (state["model"], state["best"]["model"]):
        for name, keep in mask.items():
            assert not weights[name][~keep].any() and bool(weights[name][keep].all())
