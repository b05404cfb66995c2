"""How the samples of a part are cut into batches, and a batch into the shares of processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pai.errors import ConfigError

Batch = tuple[Tensor, Tensor]


def check_share(count: int, batch_size: int, rank: int, world_size: int, samples: str) -> None:
    """Raise ``ConfigError`` if a batch or all have fewer samples than there are processes."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
    if count < world_size:
        raise ConfigError(
            f"a part of {count} {samples} cannot be shared by {world_size} processes; use fewer "
            f"processes"
        )
    if batch_size < world_size:
        raise ConfigError(
            f"a batch of {batch_size} {samples} cannot be shared by {world_size} processes; use a "
            f"larger batch size or fewer processes"
        )


def batch_sizes(count: int, batch_size: int, enough: int) -> list[int]:
    """Return the number of samples in each batch; a last one below ``enough`` joins the others."""
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full
    if sizes and 0 < rest < min(enough, batch_size):
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return sizes


def own_share(
    order: Tensor, sizes: list[int], rank: int, world_size: int
) -> tuple[Tensor, list[int]]:
    """Return the samples that are this process's, and how many of them in each batch.

    The shares of all ranks, one after the other, are the batch; they differ by at most one sample.
    """
    own, shares, first = [], [], 0
    for size in sizes:
        start, stop = (size * number // world_size for number in (rank, rank + 1))
        own.append(order[first + start : first + stop])
        shares.append(stop - start)
        first += size
    return torch.cat(own), shares


@dataclass(frozen=True)
class IndexedBatches:
    """Batches that a function makes from the numbers of their samples.

    Attributes:
        read: from numbers ``[B]`` (int64) on the CPU to ``(inputs, targets)``.
        batch_size: samples per batch, of all processes together.
        order: the numbers of the samples to visit.
        samples: what a sample is called, in the plural.
        last: a batch of its own at the end, of the first process alone.
        rank: the number of this process.
        world_size: how many there are.

    Raises:
        ConfigError: a batch has fewer samples than there are processes.
    """

    read: Callable[[Tensor], Batch]
    batch_size: int
    order: Tensor
    samples: str
    last: Callable[[], Batch] | None = None
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        check_share(len(self.order), self.batch_size, self.rank, self.world_size, self.samples)

    def _sizes(self) -> list[int]:
        return batch_sizes(len(self.order), self.batch_size, self.world_size)

    def __len__(self) -> int:
        return len(self._sizes()) + int(self.last is not None and self.rank == 0)

    def __iter__(self) -> Iterator[Batch]:
        numbers, sizes = own_share(self.order, self._sizes(), self.rank, self.world_size)
        for chosen in numbers.split(sizes):
            yield self.read(chosen)
        if self.last is not None and self.rank == 0:
            yield self.last()
