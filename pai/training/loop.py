"""The training loop of the masked network."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pai.data.task import Bundle, SampleBatches, Sized, Task
from pai.distributed import broadcast_object, broadcast_tensors, is_main, rank, world_size
from pai.seeding import global_seed
from pai.training.checkpoint import load_checkpoint, save_checkpoint
from pai.training.evaluate import Evaluation, evaluate
from pai.training.meter import Meter, check_finite
from pai.training.mixup import draw_mixture
from pai.training.options import Training
from pai.training.step import MaskedStep

EpochFn = Callable[[dict[str, float]], None]


def train(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    data: Bundle,
    options: Training,
    *,
    seed: int,
    checkpoint: Path | None,
    on_epoch: EpochFn,
    first_epoch: int = 0,
    last_epoch: int | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place, pruned weights exactly zero throughout; resume if possible.

    After every epoch the state goes to ``checkpoint``; a run that finds one there continues after
    it and ends as if it had never stopped. The validation part selects the best epoch, by the
    metric that the task says; the test part is evaluated once, at the end: for the last and for
    the best epoch.

    With several processes all call this with the same arguments, but only the main one has a
    ``checkpoint``; all return the same. Data order, augmentation and learning rate of an epoch
    follow from its number. With ``first_epoch`` and ``last_epoch`` only the epochs after the first
    and up to the last of those that the options have are trained.

    Returns:
        ``{"history": [one dict per epoch], "metrics": {...}}`` as in the record.

    Raises:
        RunError: the training or validation loss is NaN or infinite.
    """
    step = MaskedStep(model, mask, options)
    stored = broadcast_object(load_checkpoint(checkpoint) if checkpoint is not None else None)
    state = stored or _first_state(model, step.optimizer, first_epoch)
    model.load_state_dict(state["model"])
    step.optimizer.load_state_dict(state["optimizer"])
    for row in state["history"]:
        on_epoch(row)
    shares = {"rank": rank(), "world_size": world_size()}
    steps = len(data.training_batches(options.batch_size, seed, 0, **shares))
    bar = tqdm(
        total=options.epochs * steps, initial=state["epoch"] * steps,
        desc="training", unit="batch", disable=None if is_main() else True,
    )  # fmt: skip
    for epoch in range(state["epoch"], options.epochs if last_epoch is None else last_epoch):
        batches = data.training_batches(options.batch_size, seed, epoch, **shares)
        with global_seed(seed, f"training/{epoch}" + (f"/{rank()}" if rank() else "")):
            row = _train_epoch(model, step, batches, data.task, options, seed, bar, epoch)
        broadcast_tensors(model.buffers())  # BatchNorm's own statistics differ between processes
        val = _evaluate(model, data, data.val, options)
        check_finite("validation", val.loss, f"epoch {epoch + 1}")
        row |= data.task.measures("val", val.loss, val.accuracy)
        state = _next_state(state, model, step.optimizer, row, data.task)
        if checkpoint is not None:
            save_checkpoint(checkpoint, state)
        on_epoch(row)
        bar.set_postfix_str(f"epoch {epoch + 1}/{options.epochs}, validation {val.accuracy:.2%}")
    bar.close()
    metrics = _final_metrics(model, data, options, state["best"])
    return {"history": state["history"], "metrics": metrics}


def _first_state(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "history": [], "best": None,
    }  # fmt: skip


def _next_state(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer,
    row: dict[str, Any], task: Task,
) -> dict[str, Any]:  # fmt: skip
    """Return the state after one more epoch; the first of equally good epochs stays the best."""
    best = state["best"]
    if task.is_better(row, best):
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        values = {key: row[key] for key in row if key == "epoch" or key.startswith("val_")}
        best = values | {"model": weights}
    return {
        "epoch": row["epoch"], "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "history": [*state["history"], row], "best": best,
    }  # fmt: skip


def _train_epoch(
    model: nn.Module, step: MaskedStep, batches: SampleBatches, task: Task, options: Training,
    seed: int, bar: "tqdm[NoReturn]", epoch: int,
) -> dict[str, float]:  # fmt: skip
    """Train for one epoch and return the training's part of its row in the history."""
    model.train()
    meter, started = Meter(epoch), time.perf_counter()
    for number, (inputs, targets) in enumerate(batches):
        progress = epoch + (number + 0.5) / len(batches)
        mixture = None
        if options.mixup_alpha > 0:
            purpose = f"mixup/{epoch}/{number}"
            mixture = draw_mixture(options.mixup_alpha, len(targets), seed, purpose)
        factor = options.lr_schedule.factor(progress, options.epochs)
        meter.add(*step(inputs, targets, factor, mixture), targets.numel())
        bar.update()
    loss, accuracy = meter.means()
    return {
        "epoch": epoch + 1, "train_loss": loss, "train_accuracy": accuracy,
        "lr": step.optimizer.param_groups[0]["lr"],
        f"train_{task.predictions}_per_s": meter.predictions / (time.perf_counter() - started),
    }  # fmt: skip


def _evaluate(model: nn.Module, data: Bundle, part: Sized, options: Training) -> Evaluation:
    size = options.evaluation_batch_size
    batches = data.batches(part, size, rank=rank(), world_size=world_size())
    return evaluate(model, batches, options.run)


def _final_metrics(
    model: nn.Module, data: Bundle, options: Training, best: dict[str, Any] | None
) -> dict[str, float | int]:
    """Evaluate the last and the best epoch on the test part; leaves the last epoch's weights."""
    val = _evaluate(model, data, data.val, options)
    test = _evaluate(model, data, data.test, options)
    measures = data.task.measures
    metrics: dict[str, float | int] = {
        **measures("test", test.loss, test.accuracy), **measures("val", val.loss, val.accuracy),
        **measures("best_val", val.loss, val.accuracy), "best_val_epoch": 0,
        **measures("best_val_test", test.loss, test.accuracy),
    }  # fmt: skip
    if best is not None:
        last = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(best["model"])
        test = _evaluate(model, data, data.test, options)
        model.load_state_dict(last)
        metrics |= {
            **measures("best_val", best["val_loss"], best["val_accuracy"]),
            "best_val_epoch": best["epoch"],
            **measures("best_val_test", test.loss, test.accuracy),
        }
    return metrics
