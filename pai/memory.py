"""How many samples to score at once, from a memory budget.

The size follows from the model and the budget alone, not from what happens to be free, so that a
run repeated on a busier machine rounds the same way.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from pai.parallel import shares

CPU_GIB, GPU_GIB = 1.0, 8.0  # on a CPU more is not faster: fresh memory has to be mapped
_budget_gib: ContextVar[float | None] = ContextVar("memory budget of scoring", default=None)


@contextmanager
def memory_budget(gib: float | None) -> Iterator[None]:
    """Let scoring inside the block take about ``gib`` GiB for activations.

    Weights and scores come on top; a single sample is processed whatever it takes. ``None`` is the
    default: 1 GiB on a CPU, 8 GiB on a GPU.

    Raises:
        ValueError: ``gib`` is not positive.
    """
    if gib is not None and not gib > 0:
        raise ValueError(f"memory_gib must be positive, got {gib}")
    token = _budget_gib.set(gib)
    try:
        yield
    finally:
        _budget_gib.reset(token)


def chunks(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, copies: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's samples in pieces of which ``copies`` times the activations fit.

    ``copies`` is the peak of the caller's method in units of what a plain backward pass keeps.
    """
    size = None
    for _, inputs, targets in shares(batches):
        size = size or samples_at_once(model, inputs, copies)
        yield from zip(inputs.split(size), targets.split(size), strict=True)


def samples_at_once(model: nn.Module, inputs: Tensor, copies: float) -> int:
    """Return how many samples like ``inputs[0]`` fit into the budget, at least one."""
    gib = _budget_gib.get() or (CPU_GIB if inputs.device.type == "cpu" else GPU_GIB)
    return max(1, int(gib * 2**30 / (copies * activation_bytes(model, inputs[:1]))))


def activation_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Return how many bytes autograd keeps of a forward pass, the parameters not counted."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(inputs.clone())  # a storage of its own, not a view of a larger one
    del outputs  # alive until here, so that no two kept tensors had the same address
    return max(1, sum(kept.values()))
