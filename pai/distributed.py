"""Several processes that do one run together, started by ``torchrun``, one device each.

Process 0 is the main one: it alone reads and writes the run directory, logs and prints. The others
compute their share and are told the rest by :func:`broadcast_object`. Without ``torchrun``, or with
a single process, every function here is the identity and costs nothing.
"""

import datetime
import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_PATIENCE = datetime.timedelta(hours=12)  # torchrun itself ends all when one process fails


def launched() -> int:
    """Return how many processes ``torchrun`` has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def world_size() -> int:
    """Return how many processes share the work."""
    if launched() == 1:
        return 1
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    if world_size() == 1:
        return 0
    from torch import distributed

    return distributed.get_rank()


def is_main() -> bool:
    """Return whether this is the process that writes."""
    return rank() == 0


def local_rank() -> int:
    """Return the number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that ``torchrun`` has started; leave them at the end of the block.

    Tensors on CPUs are exchanged by gloo, those on GPUs by NCCL.
    """
    if launched() == 1:
        yield
        return
    import torch
    from torch import distributed

    backend = "gloo"
    if torch.cuda.is_available() and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        gc.collect()  # what shares gradients goes before what it shares them through
        distributed.destroy_process_group()


def broadcast_object(value: T) -> T:
    """Return process 0's ``value`` on all processes; the others' does not matter."""
    if world_size() == 1:
        return value
    from torch import distributed

    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_tensors(tensors: Iterable["Tensor"]) -> None:
    """Overwrite the tensors of all processes with process 0's."""
    if world_size() > 1:
        from torch import distributed

        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def sum_over_processes(tensor: "Tensor") -> "Tensor":
    """Add the ``tensor`` of all processes up, in place, and return it."""
    if world_size() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor
