"""How many samples to score at once, from a memory budget.

The size follows from the model and the budget alone, not from what happens to be free, so that a
run repeated on a busier machine rounds the same way.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from pai.errors import RunError
from pai.parallel import processes, shares

T = TypeVar("T")

CPU_GIB, GPU_GIB = 1.0, 8.0  # on a CPU more is not faster: fresh memory has to be mapped
_MOST = 2**31 - 1  # samples; budgets may be as large as a float
_budget_gib: ContextVar[float | None] = ContextVar("memory budget of scoring", default=None)


@dataclass
class _Size:
    """Samples at once: the most there may be, the most there were."""

    limit: int | None = None
    largest: int = 0


_size: ContextVar[_Size | None] = ContextVar("size of pieces", default=None)


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


def within_memory(
    compute: Callable[[], T],
    model: nn.Module,
    generator: torch.Generator | None,
    uncut: str = "",
) -> T:
    """Return ``compute()``; where memory runs out, start over with half as many samples at once.

    ``compute`` must begin anew each time. Pieces change no score beyond rounding, and ``generator``
    is set back, so the result is that of a machine with more memory. Each retry is announced by a
    warning.

    Args:
        compute: the work.
        model: what is scored.
        generator: of the random numbers that ``compute`` draws.
        uncut: why there are no pieces, and what else takes less memory, if there are none.

    Raises:
        RunError: memory does not suffice for a single sample, or for what is never cut.
    """
    state = None if generator is None else generator.get_state()
    limit = None
    while True:
        size = _Size(limit)
        token = _size.set(size)
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if size.largest == 0:
                raise RunError(f"{_OUT}: {uncut or 'there is nothing to cut'}") from error
            if processes() > 1:  # the others are in the middle of their share
                raise RunError(f"{_OUT}; scoring.memory_gib makes pieces smaller") from error
            if size.largest == 1:
                raise RunError(f"{_OUT} even with one sample at a time") from error
        finally:
            _size.reset(token)
        limit = size.largest // 2
        warnings.warn(
            f"{_OUT} with {size.largest} samples at once; starting over with {limit} "
            f"(scoring.memory_gib makes pieces smaller)", stacklevel=2,
        )  # fmt: skip
        if any(p.is_cuda for p in model.parameters()):
            torch.cuda.empty_cache()
        if generator is not None and state is not None:
            generator.set_state(state)


_OUT = "scoring ran out of memory"


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether ``error`` is an allocation that failed; on a CPU torch has no class for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "DefaultCPUAllocator" in str(error)
    )


def chunks(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, copies: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's samples in pieces of which ``copies`` times the activations fit.

    ``copies`` is the peak of the caller's method in units of what a plain backward pass keeps.
    """
    for _, inputs, targets in numbered_chunks(model, batches, copies=copies):
        yield inputs, targets


def numbered_chunks(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, copies: float
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the pieces of :func:`chunks`, each with the position of its batch."""
    sizes: dict[torch.Size, int] = {}
    for position, inputs, targets in shares(batches):
        kind = inputs.shape[1:]
        if kind not in sizes:
            sizes[kind] = samples_at_once(model, inputs, copies)
        for piece in zip(inputs.split(sizes[kind]), targets.split(sizes[kind]), strict=True):
            yield position, *piece


def samples_at_once(model: nn.Module, inputs: Tensor, copies: float) -> int:
    """Return how many samples like ``inputs[0]`` fit into the budget, at least one."""
    gib = _budget_gib.get() or (CPU_GIB if inputs.device.type == "cpu" else GPU_GIB)
    fitting = gib * 2**30 / (copies * activation_bytes(model, inputs[:1]))
    fitting = max(1, int(min(fitting, _MOST)))
    if (size := _size.get()) is not None:
        fitting = min(fitting, size.limit or fitting)
        size.largest = max(size.largest, min(fitting, len(inputs)))
    return fitting


def activation_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Return how many bytes autograd keeps of a forward pass, the parameters not counted."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = (tensor.values() if tensor.is_nested else tensor).untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model(inputs.clone())  # a storage of its own, not a view of a larger one
    del outputs  # alive until here, so that no two kept tensors had the same address
    return max(1, sum(kept.values()))
