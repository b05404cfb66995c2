"""What every data set becomes: three disjoint splits of uint8 images, and batches made from them.

Legend: N images, C channels, H x W pixels, B batch size, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pai.data.augment import RandomCropFlip
from pai.errors import ConfigError
from pai.seeding import generator

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DataSpec:
    """What can be known about a data set before it is loaded: enough to build a model for it."""

    num_classes: int
    channels: int
    height: int
    width: int
    smallest_class: int  # training images of the smallest class, after the validation split


@runtime_checkable
class Dataset(Protocol):
    """The options of a data set: looked at before the run, loaded in it."""

    def check(self) -> DataSpec:
        """Return what a model must fit; cheap. Raises ConfigError if the data is not there."""

    def load(self) -> "DataBundle":
        """Return the bundle."""


@dataclass(frozen=True)
class Split:
    """Images ``[N, C, H, W]`` (uint8) with their labels ``[N]`` (int64)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Split":
        """Return the images at ``index``, in that order."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Split":
        """Return the split with its tensors on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Batches:
    """Normalised float batches ``([B, C, H, W], [B])`` on the split's device.

    Iterating again gives the same batches, unless they are augmented: then with new draws.
    ``order`` lists the positions to visit. With ``for_batchnorm`` a trailing batch of a single
    image is left out when there are others: statistics of one image do not exist.

    Of ``world_size`` processes each takes its share of every batch, consecutive images, equal to
    within one. A trailing batch too small for all of them joins the one before.
    """

    split: Split
    mean: Tensor
    std: Tensor
    batch_size: int
    order: Tensor
    augment: RandomCropFlip | None = None
    augment_generator: torch.Generator | None = None
    for_batchnorm: bool = False
    rank: int = 0
    world_size: int = 1

    def _bounds(self) -> list[tuple[int, int]]:
        total = len(self.order)
        lonely = self.for_batchnorm and total % self.batch_size == 1 and total > 1
        starts = list(range(0, total - 1 if lonely else total, self.batch_size))
        stops = [min(start + self.batch_size, total) for start in starts]
        enough = self.world_size * (2 if self.for_batchnorm else 1)
        if self.world_size > 1 and len(starts) > 1 and stops[-1] - starts[-1] < enough:
            starts.pop()
            stops[-2:] = stops[-1:]
        return list(zip(starts, stops, strict=True))

    def __len__(self) -> int:
        return len(self._bounds())

    def __iter__(self) -> Iterator[Batch]:
        device = self.split.images.device
        scale = (1 / (255 * self.std)).to(device).view(1, -1, 1, 1)
        shift = (self.mean / self.std).to(device).view(1, -1, 1, 1)
        for start, stop in self._bounds():
            own = [
                start + (stop - start) * k // self.world_size for k in (self.rank, self.rank + 1)
            ]
            index = self.order[own[0] : own[1]].to(device)
            images = self.split.images[index]
            if self.augment is not None:
                images = self.augment(images, self.augment_generator)
            yield images.to(torch.float32) * scale - shift, self.split.labels[index]


@dataclass(frozen=True)
class DataBundle:
    """Train, validation and test splits that share no image, with the train part's statistics."""

    train: Split
    val: Split
    test: Split
    num_classes: int
    mean: Tensor  # [C], of the train part, pixels in 0..1
    std: Tensor  # [C]
    augment: RandomCropFlip | None

    @classmethod
    def from_train_and_test(
        cls, train: Split, test: Split, *, num_classes: int, val_fraction: float,
        split_seed: int, augment: RandomCropFlip | None, val: Split | None = None,
    ) -> "DataBundle":  # fmt: skip
        """Set a stratified validation part aside (unless ``val`` is given) and measure the rest.

        Raises:
            ConfigError: the train or the validation part would be empty.
        """
        if val is None:
            val_index, train_index = stratified_split(train.labels, val_fraction, split_seed)
            train, val = train.subset(train_index), train.subset(val_index)
        for name, split in (("train", train), ("validation", val), ("test", test)):
            if len(split) == 0:
                raise ConfigError(
                    f"dataset.val_fraction: {val_fraction} leaves the {name} part empty; "
                    f"use a value between 0 and 1 that leaves at least one image in each part"
                )
        mean, std = channel_statistics(train.images)
        return cls(train, val, test, num_classes, mean, std, augment)

    def to(self, device: torch.device) -> "DataBundle":
        """Return the bundle with its images on ``device``."""
        train, val, test = (split.to(device) for split in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    def batches(
        self, split: Split, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> Batches:
        """Return ``split`` in its stored order, not augmented."""
        return Batches(
            split, self.mean, self.std, batch_size, torch.arange(len(split)),
            rank=rank, world_size=world_size,
        )  # fmt: skip

    def warmup_batches(self, batch_size: int, seed: int) -> Batches:
        """Return the train part in one seeded random order, not augmented."""
        order = torch.randperm(len(self.train), generator=generator(seed, "warmup_order"))
        return Batches(self.train, self.mean, self.std, batch_size, order, for_batchnorm=True)

    def training_batches(
        self, batch_size: int, seed: int, epoch: int, *, rank: int = 0, world_size: int = 1
    ) -> Batches:
        """Return the train part for one epoch: its own order and its own augmentation stream."""
        order = torch.randperm(len(self.train), generator=generator(seed, f"order/{epoch}"))
        stream = generator(seed, f"augmentation/{epoch}")
        return Batches(
            self.train,
            self.mean,
            self.std,
            batch_size,
            order,
            self.augment,
            stream,
            for_batchnorm=True,
            rank=rank,
            world_size=world_size,
        )

    def scoring_batches(self, samples_per_class: int, batch_size: int, seed: int) -> Batches:
        """Return ``samples_per_class`` train images of each class, shuffled, never augmented.

        Raises:
            ConfigError: a class of the train part has fewer images than asked for.
        """
        stream = generator(seed, "scoring_subset")
        labels = self.train.labels.cpu()
        chosen = []
        for label in range(self.num_classes):
            members = torch.nonzero(labels == label).flatten()
            if len(members) < samples_per_class:
                raise ConfigError(
                    f"scoring.samples_per_class: {samples_per_class} asked for, but class {label} "
                    f"has only {len(members)} training images"
                )
            chosen.append(
                members[torch.randperm(len(members), generator=stream)[:samples_per_class]]
            )
        index = torch.cat(chosen)
        order = torch.randperm(len(index), generator=stream)
        return Batches(self.train, self.mean, self.std, batch_size, index[order])


def held_out(count: int, fraction: float) -> int:
    """Return how many of a class of ``count`` images are held out: the rounded fraction, >= 1."""
    held = round(fraction * count)
    return max(held, 1) if count > 1 and fraction > 0 else held


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return (held-out, remaining) positions: ``fraction`` of each class at random, both sorted.

    Each class gives :func:`held_out` images.
    """
    stream = generator(seed, "split")
    labels = labels.cpu()
    held, rest = [], []
    for label in torch.unique(labels):
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=stream)]
        count = held_out(len(members), fraction)
        held.append(members[:count])
        rest.append(members[count:])
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
