"""Scoring on several processes: each takes its share of every batch, sums are added up at the end.

Active whenever ``torch.distributed`` is initialised with more than one process (``torchrun``; gloo
on CPUs, NCCL on GPUs). All processes call the same function with the same model and the *same*
batches, and all get the result that one process alone would get, up to rounding.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch import distributed as dist


def processes() -> int:
    """Return how many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def shares(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield ``(position of the batch, inputs, targets)`` of this process's samples of each batch.

    Shares are contiguous and differ by at most one sample; which process takes the larger ones
    goes round. Empty shares and empty batches are left out.

    Raises:
        ValueError: the processes were given different batches.
    """
    count = processes()
    rank = dist.get_rank() if count > 1 else 0
    for position, (inputs, targets) in enumerate(batches):
        if len(targets) == 0:
            continue
        if count == 1:
            yield position, inputs, targets
            continue
        if position == 0:
            _check_same(inputs, targets)
        turn = (rank + position) % count
        start, stop = (len(targets) * k // count for k in (turn, turn + 1))
        if stop > start:
            yield position, inputs[start:stop], targets[start:stop]


def add_up(sums: Iterable[Mapping[str, Tensor]], samples: int) -> int:
    """Add the tensors of all processes up, in place; return the number of samples of all.

    Raises:
        ValueError: there was no sample at all.
    """
    if processes() > 1:
        device = None
        for named in sums:
            for value in named.values():
                device = value.device
                dist.all_reduce(value)
        total = torch.tensor(samples, device=device)
        dist.all_reduce(total)
        samples = int(total)
    require_samples(samples)
    return samples


def require_samples(samples: int) -> None:
    """Raise ``ValueError`` if there was no sample at all."""
    if samples == 0:
        raise ValueError("batches is empty: scoring needs at least one sample")


def common_stream(generator: torch.Generator | None) -> torch.Generator:
    """Return a CPU generator that starts the same on all processes, seeded from ``generator``.

    Random numbers drawn on the CPU are the same whatever device computes with them.
    """
    device = torch.device("cpu") if generator is None else generator.device
    seed = torch.randint(2**62, (1,), generator=generator, device=device)
    if processes() > 1:
        seed = seed.cuda() if dist.get_backend() == "nccl" else seed.cpu()
        dist.broadcast(seed, src=0)
    return torch.Generator().manual_seed(int(seed))


def _check_same(inputs: Tensor, targets: Tensor) -> None:
    some = inputs.flatten()[:: max(1, inputs.numel() // 64)].double().sum()
    mine = torch.stack([some, targets.to(some).sum(), some.new_tensor(len(targets))])
    lowest, highest = mine.clone(), mine.clone()
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    if not torch.equal(lowest, highest):
        raise ValueError(
            "batches differ between the processes; give all of them the same, each takes its share"
        )
