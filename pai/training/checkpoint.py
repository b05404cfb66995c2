"""Checkpoints: written by rename, read without unpickling objects.

A new checkpoint is written completely and flushed to disk under a temporary name and then renamed
over the old one, which the file system does as one action: at every moment there is exactly one
whole checkpoint, the old or the new. Keeping the old one in addition would only help against a disk
that damages what it has stored; that is reported, not repaired.
"""

import io
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pai.errors import RunError
from pai.records import write_bytes_atomically

FaultFn = Callable[[Mapping[str, Any]], str | None]
"""Says what is wrong with a state that was read, if anything."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, fault: FaultFn = lambda state: None) -> dict[str, Any] | None:
    """Return the state saved at ``path``, its tensors on the CPU, or ``None`` if there is none.

    Args:
        path: of the file.
        fault: returns what is wrong with the content, or ``None``.

    Raises:
        RunError: the file is damaged, or ``fault`` says so.
    """
    if not path.exists():
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise nearly anything
        raise RunError(
            f"cannot read checkpoint {path}: {error}; remove it to start over"
        ) from error
    if not isinstance(state, dict):
        found: str | None = f"a {type(state).__name__} and not a dictionary"
    else:
        found = fault(state)
    if found is not None:
        raise RunError(f"{path} is no checkpoint of this run: {found}; remove it to start over")
    return dict(state)


def weights_fault(name: str, stored: Any, weights: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with tensors that are to be loaded into ``weights``, if anything."""
    if not isinstance(stored, Mapping) or set(stored) != set(weights):
        return f"{name} does not hold the tensors of the network"
    for key, value in weights.items():
        if not isinstance(stored[key], Tensor) or stored[key].shape != value.shape:
            return f"{name} has no tensor {key!r} of shape {tuple(value.shape)}"
    return None


def training_fault(
    state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, ends: range
) -> str | None:
    """Return what is wrong with the state of a training, if anything.

    Args:
        state: as it was read.
        model: that is trained.
        optimizer: of the training.
        ends: the numbers, counted from 1, of the epochs that the training has; the state is from
            the end of one of them.
    """
    if set(state) != {"epoch", "model", "optimizer", "history", "best"}:
        return f"its keys are {reprlib.repr(sorted(map(str, state)))}"
    epoch, rows = state["epoch"], state["history"]
    if type(epoch) is not int or epoch not in ends:
        return f"its epoch is {reprlib.repr(epoch)}, none of the {len(ends)} of the training"
    so_far = list(range(ends.start, epoch + 1))
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return f"its history is {reprlib.repr(rows)}"
    if [row.get("epoch") for row in rows] != so_far:
        return f"its history is not that of the epochs {ends.start} to {epoch}"
    if not all(type(value) in (int, float) for row in rows for value in row.values()):
        return "its history holds something else than numbers"
    return (
        weights_fault("its model", state["model"], model.state_dict())
        or _best_fault(state["best"], rows, model)
        or _optimizer_fault(state["optimizer"], optimizer)
    )


def _best_fault(best: Any, rows: list[Mapping[str, Any]], model: nn.Module) -> str | None:
    """Say if ``best`` is not one of the epochs of the history with its weights."""
    if not isinstance(best, Mapping):
        return f"its best epoch is {reprlib.repr(best)}"
    values = {key: value for key, value in best.items() if key != "model"}
    kept = [{k: v for k, v in row.items() if k == "epoch" or k.startswith("val_")} for row in rows]
    if values not in kept:
        return "its best epoch is none of its history"
    return weights_fault("its best epoch", best.get("model"), model.state_dict())


def _optimizer_fault(stored: Any, optimizer: torch.optim.Optimizer) -> str | None:
    """Say if ``stored`` is no state of an optimizer of the same parameters."""
    if not isinstance(stored, Mapping) or set(stored) != {"state", "param_groups"}:
        return "its optimizer is no state of one"
    fresh, groups, state = optimizer.state_dict(), stored["param_groups"], stored["state"]
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        return "its optimizer has no groups of parameters"
    if [group.get("params") for group in groups] != [g["params"] for g in fresh["param_groups"]]:
        return "its optimizer is for other parameters"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not isinstance(state, Mapping) or not set(state) <= set(range(len(parameters))):
        return "its optimizer has a state of other parameters"
    for number, values in state.items():
        if not isinstance(values, Mapping) or any(
            isinstance(value, Tensor) and value.ndim and value.shape != parameters[number].shape
            for value in values.values()
        ):
            return f"its optimizer has no state of parameter {number}"
    return None
