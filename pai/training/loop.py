"""The training loop of the masked network."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pai.data.task import Bundle, SampleBatches, Sized, Task
from pai.distributed import broadcast_object, broadcast_tensors, is_main, rank, world_size
from pai.finite import source_of
from pai.seeding import global_seed
from pai.training.checkpoint import load_checkpoint, save_checkpoint, training_fault
from pai.training.evaluate import Evaluation, evaluate
from pai.training.meter import CHECK_EVERY, Meter, check_loss
from pai.training.mixup import draw_mixture
from pai.training.options import Training
from pai.training.step import MaskedStep

EpochFn = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Moment:
    """``then`` is called when ``step`` optimizer steps of the options' training are done."""

    step: int
    then: Callable[[], None]


NEVER = Moment(-1, lambda: None)


def train(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    data: Bundle,
    options: Training,
    *,
    seed: int,
    checkpoint: Path | None,
    on_epoch: EpochFn,
    first_step: int = 0,
    last_step: int | None = None,
    moment: Moment = NEVER,
) -> dict[str, Any]:
    """Train ``model`` in place, pruned weights exactly zero throughout; resume if possible.

    After every epoch the state goes to ``checkpoint``; a run that finds one there continues after
    it and ends as if it had never stopped. The validation part selects the best epoch, by the
    task's metric; the test part is evaluated once, at the end: for the last and the best epoch.

    With several processes all call this with the same arguments, but only the main one has a
    ``checkpoint``; all return the same. Data order, augmentation and learning rate of a step
    follow from its epoch and its number in it. With ``first_step`` and ``last_step`` only the steps
    after the first and up to the last of those that the options have are taken; an epoch of which
    some are left out counts as one, its row is of the rest. A resumed run may see ``moment`` again.

    Returns:
        ``{"history": [one dict per epoch], "metrics": {...}}`` as in the record.

    Raises:
        RunError: the loss of training, validation or test is NaN or infinite; where it is from.
    """
    options = options.fitted_to(model)
    step = MaskedStep(model, mask, options)
    each = steps_per_epoch(data, options)
    last = options.epochs * each if last_step is None else last_step
    ends = range(first_step // each + 1, math.ceil(last / each) + 1)
    stored = broadcast_object(_stored(checkpoint, model, step.optimizer, ends))
    state = stored or _first_state(model, step.optimizer, first_step // each)
    model.load_state_dict(state["model"])
    step.optimizer.load_state_dict(state["optimizer"])
    for row in state["history"]:
        on_epoch(row)
    bar = _bar(max(first_step, state["epoch"] * each), last)
    for epoch in range(state["epoch"], math.ceil(last / each)):
        steps = range(max(0, first_step - epoch * each), min(each, last - epoch * each))
        batches = _batches(data, options, seed, epoch)
        with global_seed(seed, f"training/{epoch}" + (f"/{rank()}" if rank() else "")):
            row = _train_epoch(
                model, step, batches, data.task, options, seed, bar, steps, moment, epoch
            )
        broadcast_tensors(model.buffers())  # BatchNorm's own statistics differ between processes
        row = _validated(row, model, data, options)
        state = _next_state(state, model, step.optimizer, row, data.task)
        if checkpoint is not None:
            save_checkpoint(checkpoint, state)
        on_epoch(row)
        bar.set_postfix_str(f"epoch {epoch + 1}, validation {row['val_accuracy']:.2%}")
    bar.close()
    metrics = _final_metrics(model, data, options, state["best"])
    return {"history": state["history"], "metrics": metrics}


def check_parts(data: Bundle, options: Training) -> None:
    """Raise :class:`ConfigError` if a part has fewer samples than there are processes."""
    for part in (data.train, data.val, data.test):
        _evaluation_batches(data, part, options)  # which checks it


def steps_per_epoch(data: Bundle, options: Training) -> int:
    """Return how many optimizer steps an epoch has: batches of all processes together."""
    return len(_batches(data, options, 0, 0))


def _stored(
    checkpoint: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, ends: range
) -> dict[str, Any] | None:
    """Return the state in ``checkpoint``, which is from the end of one of the epochs ``ends``."""
    if checkpoint is None:
        return None
    fault = partial(training_fault, model=model, optimizer=optimizer, ends=ends)
    return load_checkpoint(checkpoint, fault)


def _batches(data: Bundle, options: Training, seed: int, epoch: int) -> SampleBatches:
    size, shares = options.batch_size, {"rank": rank(), "world_size": world_size()}
    return data.training_batches(size, seed, epoch, **shares)


def _bar(done: int, total: int) -> "tqdm[NoReturn]":
    hidden = None if is_main() else True  # None: where there is no terminal
    return tqdm(total=total, initial=done, desc="training", unit="batch", disable=hidden)


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
    seed: int, bar: "tqdm[NoReturn]", steps: range, moment: Moment, epoch: int,
) -> dict[str, float]:  # fmt: skip
    """Take the ``steps`` of one epoch; return the training's part of its row in the history."""
    model.train()
    inputs = torch.empty(0)

    def source() -> str:
        return source_of(model, inputs, partial(options.run, model))

    every = 1 if step.looks_at_once else CHECK_EVERY
    meter = Meter(epoch, steps.start, every=every, source=source)
    started = time.perf_counter()
    for number, (inputs, targets) in zip(
        steps, islice(batches, steps.start, steps.stop), strict=True
    ):
        progress = epoch + (number + 0.5) / len(batches)
        mixture = None
        if options.mixup_alpha > 0:
            purpose = f"mixup/{epoch}/{number}"
            mixture = draw_mixture(options.mixup_alpha, len(targets), seed, purpose)
        factor = options.lr_schedule.factor(progress, options.epochs)
        meter.add(*step(inputs, targets, factor, mixture), targets.numel())
        bar.update()
        if epoch * len(batches) + number + 1 == moment.step:
            moment.then()
    loss, accuracy = meter.means()
    return {
        "epoch": epoch + 1, "train_loss": loss, "train_accuracy": accuracy,
        "lr": step.optimizer.param_groups[0]["lr"],
        f"train_{task.predictions}_per_s": meter.predictions / (time.perf_counter() - started),
    }  # fmt: skip


def _validated(
    row: dict[str, float], model: nn.Module, data: Bundle, options: Training
) -> dict[str, float]:
    """Return the row of an epoch with what its validation says."""
    val = _evaluate(model, data, data.val, options)
    _check(model, data, data.val, options, val, f"epoch {row['epoch']}")
    return row | data.task.measures("val", val.loss, val.accuracy)


def _evaluate(model: nn.Module, data: Bundle, part: Sized, options: Training) -> Evaluation:
    return evaluate(model, _evaluation_batches(data, part, options), options.run)


def _evaluation_batches(data: Bundle, part: Sized, options: Training) -> SampleBatches:
    size = options.evaluation_batch_size
    return data.batches(part, size, rank=rank(), world_size=world_size())


def _check(
    model: nn.Module, data: Bundle, part: Sized, options: Training, found: Evaluation, when: str
) -> None:
    """Raise :class:`RunError` if the loss over a part of the data is NaN or infinite."""

    def source() -> str:
        batches = data.batches(part, options.evaluation_batch_size)
        run = partial(options.run, model)
        return next(filter(None, (source_of(model, inputs, run) for inputs, _ in batches)), "")

    check_loss("validation" if part is data.val else "test", found.loss, when, source)


def _final_metrics(
    model: nn.Module, data: Bundle, options: Training, best: dict[str, Any] | None
) -> dict[str, float | int]:
    """Evaluate the last and the best epoch on the test part; leaves the last epoch's weights."""
    val = _evaluate(model, data, data.val, options)
    test = _evaluate(model, data, data.test, options)
    for part, found in ((data.val, val), (data.test, test)):
        _check(model, data, part, options, found, "the final evaluation")
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
        _check(model, data, data.test, options, test, "the final evaluation")
        model.load_state_dict(last)
        metrics |= {
            **measures("best_val", best["val_loss"], best["val_accuracy"]),
            "best_val_epoch": best["epoch"],
            **measures("best_val_test", test.loss, test.accuracy),
        }
    return metrics
