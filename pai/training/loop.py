"""The training loop of the masked network."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pai.data.bundle import Batches, DataBundle
from pai.errors import RunError
from pai.seeding import global_seed
from pai.training.checkpoint import load_checkpoint, save_checkpoint
from pai.training.evaluate import Evaluation, evaluate
from pai.training.masked import PrunedWeights
from pai.training.options import Training

EVALUATION_BATCH_SIZE = 512
EpochFn = Callable[[dict[str, float]], None]


def train(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    data: DataBundle,
    options: Training,
    *,
    seed: int,
    checkpoint: Path,
    on_epoch: EpochFn,
) -> dict[str, Any]:
    """Train ``model`` in place, pruned weights exactly zero throughout; resume if possible.

    After every epoch the state goes to ``checkpoint``; a run that finds one there continues after
    it and ends as if it had never stopped. The validation part selects the best epoch; the test
    part is evaluated once, at the end: for the last and for the best epoch.

    Returns:
        ``{"history": [one dict per epoch], "metrics": {...}}`` as in the record.

    Raises:
        RunError: the training or validation loss is NaN or infinite.
    """
    optimizer = options.optimizer(model.parameters())
    pruned = PrunedWeights(model, mask)
    pruned.zero()
    device = data.train.device
    state = load_checkpoint(checkpoint, device) or _first_state(model, optimizer)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    base_rates = [group["initial_lr"] for group in optimizer.param_groups]
    for row in state["history"]:
        on_epoch(row)
    steps = len(data.training_batches(options.batch_size, seed, 0))
    bar = tqdm(
        total=options.epochs * steps, initial=state["epoch"] * steps,
        desc="training", unit="batch", disable=None,
    )  # fmt: skip
    for epoch in range(state["epoch"], options.epochs):
        batches = data.training_batches(options.batch_size, seed, epoch)
        with global_seed(seed, f"training/{epoch}"):
            fit = _train_epoch(model, batches, optimizer, pruned, base_rates, options, bar, epoch)
        val = evaluate(model, data.batches(data.val, EVALUATION_BATCH_SIZE))
        _check_finite("validation", val.loss, epoch)
        row = {
            "epoch": epoch + 1, "train_loss": fit.loss, "train_accuracy": fit.accuracy,
            "val_loss": val.loss, "val_accuracy": val.accuracy,
            "lr": optimizer.param_groups[0]["lr"],
        }  # fmt: skip
        state = _next_state(state, model, optimizer, row)
        save_checkpoint(checkpoint, state)
        on_epoch(row)
        bar.set_postfix_str(f"epoch {epoch + 1}/{options.epochs}, validation {val.accuracy:.2%}")
    bar.close()
    return {"history": state["history"], "metrics": _final_metrics(model, data, state["best"])}


def _first_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return {
        "epoch": 0, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "history": [], "best": None,
    }  # fmt: skip


def _next_state(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, row: dict[str, Any]
) -> dict[str, Any]:
    """Return the state after one more epoch; the first of equally good epochs stays the best."""
    best = state["best"]
    if best is None or row["val_accuracy"] > best["val_accuracy"]:
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        best = {key: row[key] for key in ("epoch", "val_accuracy")} | {"model": weights}
    return {
        "epoch": row["epoch"], "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "history": [*state["history"], row], "best": best,
    }  # fmt: skip


def _train_epoch(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    pruned: PrunedWeights,
    base_rates: list[float],
    options: Training,
    bar: "tqdm[NoReturn]",
    epoch: int,
) -> Evaluation:
    model.train()
    loss_sum = torch.zeros((), dtype=torch.float64)
    correct, samples = torch.zeros((), dtype=torch.int64), 0
    for step, (inputs, targets) in enumerate(batches):
        factor = options.lr_schedule.factor(epoch + (step + 0.5) / len(batches), options.epochs)
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad(set_to_none=True)
        logits = model(inputs)
        loss = F.cross_entropy(logits, targets, label_smoothing=options.label_smoothing)
        loss.backward()
        optimizer.step()
        pruned.zero()
        loss_sum = loss_sum + loss.detach().double() * len(targets)
        correct = correct + (logits.detach().argmax(1) == targets).sum()
        samples += len(targets)
        bar.update()
    mean = float(loss_sum) / samples
    _check_finite("training", mean, epoch)
    return Evaluation(mean, float(correct) / samples)


def _check_finite(part: str, loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise RunError(
            f"the {part} loss became {loss} in epoch {epoch + 1}; a lower "
            f"training.optimizer.lr may help"
        )


def _final_metrics(
    model: nn.Module, data: DataBundle, best: dict[str, Any] | None
) -> dict[str, float | int]:
    """Evaluate the last and the best epoch on the test part; leaves the last epoch's weights."""
    val = evaluate(model, data.batches(data.val, EVALUATION_BATCH_SIZE))
    test = evaluate(model, data.batches(data.test, EVALUATION_BATCH_SIZE))
    metrics: dict[str, float | int] = {
        "test_accuracy": test.accuracy, "test_loss": test.loss,
        "val_accuracy": val.accuracy, "val_loss": val.loss,
        "best_val_accuracy": val.accuracy, "best_val_epoch": 0,
        "best_val_test_accuracy": test.accuracy, "best_val_test_loss": test.loss,
    }  # fmt: skip
    if best is not None:
        last = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(best["model"])
        test = evaluate(model, data.batches(data.test, EVALUATION_BATCH_SIZE))
        model.load_state_dict(last)
        metrics |= {
            "best_val_accuracy": best["val_accuracy"], "best_val_epoch": best["epoch"],
            **{f"best_val_test_{key}": value for key, value in asdict(test).items()},
        }  # fmt: skip
    return metrics
