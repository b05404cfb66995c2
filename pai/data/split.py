"""Parts of a data set in memory, how one is split in two, and the statistics of its pixels.

Legend: N images, C channels, H x W pixels.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pai.data.augment import Augment
from pai.data.shares import Batch
from pai.errors import ConfigError
from pai.seeding import generator


@dataclass(frozen=True)
class Split:
    """Images ``[N, C, H, W]`` (uint8) with their labels ``[N]`` (int64), on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def subset(self, index: Tensor) -> "Split":
        """Return the images at ``index``, in that order."""
        index = index.to(self.device)
        return Split(self.images.index_select(0, index), self.labels[index])

    def to(self, device: torch.device) -> "Split":
        """Return the split with its tensors on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return the exact mean and standard deviation of its pixels."""
        return channel_statistics(self.images)

    def fingerprints(self) -> list[bytes]:
        """Return a hash of the pixels of each image."""
        rows = self.images.cpu().contiguous().flatten(1).numpy()
        return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]

    def read(
        self, positions: Tensor, sizes: Sequence[int], augment: Augment | None = None,
        draws: Tensor | None = None,
    ) -> Iterator[Batch]:  # fmt: skip
        """Yield the images at ``positions`` as batches of ``sizes``; see :class:`Part`."""
        first = 0
        positions = positions.to(self.device)
        draws = None if draws is None else draws.to(self.device)
        for size in sizes:
            index = positions[first : first + size]
            images = self.images.index_select(0, index)
            if augment is not None:
                assert draws is not None, "draws belong to augment"
                images = augment(images, draws[first : first + size])
            yield images, self.labels[index]
            first += size


def held_out(count: int, fraction: float) -> int:
    """Return how many of a class of ``count`` images are held out: the rounded fraction, >= 1."""
    held = round(fraction * count)
    return max(held, 1) if count > 1 and fraction > 0 else held


def left_by_class(counts: Sequence[int], fraction: float) -> list[int]:
    """Return how many images of each class are left when a fraction of each is held out."""
    return [count - held_out(count, fraction) for count in counts]


def members_by_class(labels: Tensor, num_classes: int = 0) -> list[Tensor]:
    """Return the sorted positions of each class: of ``num_classes``, or of all that occur."""
    labels = labels.cpu()
    counts = labels.bincount(minlength=num_classes)
    return list(labels.argsort(stable=True).split(counts.tolist()))


def chosen_members(
    classes: list[Tensor], count: int, stream: torch.Generator, samples: str
) -> Tensor:
    """Return ``count`` random members of each class.

    Raises:
        ConfigError: a class has fewer.
    """
    chosen = []
    for label, members in enumerate(classes):
        if len(members) < count:
            raise ConfigError(
                f"scoring.samples_per_class: {count} asked for, but class {label} has only "
                f"{len(members)} training {samples}"
            )
        chosen.append(members[torch.randperm(len(members), generator=stream)][:count])
    return torch.cat(chosen)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return (held-out, remaining) positions: ``fraction`` of each class at random, both sorted.

    Each class gives :func:`held_out` images.
    """
    stream = generator(seed, "split")
    held, rest = [], []
    for members in members_by_class(labels):
        shuffled = members[torch.randperm(len(members), generator=stream)]
        count = held_out(len(members), fraction)
        held.append(shuffled[:count])
        rest.append(shuffled[count:])
    return torch.cat(held).sort().values, torch.cat(rest).sort().values


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation ``[C]`` of uint8 ``images``, pixels scaled to 0..1.

    Exact: from the histogram of the 256 grey values of each channel, in float64. A constant
    channel gets standard deviation 1.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        histogram = torch.bincount(images[:, channel].flatten().cpu(), minlength=256).double()
        weight = histogram / histogram.sum()
        mean = (weight * values).sum()
        means.append(mean)
        stds.append((weight * (values - mean) ** 2).sum().sqrt())
    std = torch.stack(stds)
    std = torch.where(std > 0, std, torch.ones_like(std))
    return torch.stack(means).float(), std.float()
