"""Batches of one part of a data set, whole or as the share of one process of several.

Legend: N images of the part, C channels, H x W pixels, B batch size, W processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from pai.data.augment import Augment
from pai.data.shares import Batch, batch_sizes, check_share, own_share

__all__ = ["Batch", "Batches", "Part"]


class Part(Protocol):
    """The train, validation or test part of a data set, wherever its images are."""

    @property
    def labels(self) -> Tensor:
        """The class of each image: ``[N]`` (int64)."""

    @property
    def device(self) -> torch.device:
        """Where batches are made."""

    def __len__(self) -> int:
        """Return N."""

    def subset(self, index: Tensor) -> Self:
        """Return the images at ``index``, in that order."""

    def to(self, device: torch.device) -> Self:
        """Return the part with its batches on ``device``."""

    def fingerprints(self) -> list[bytes] | None:
        """Return a hash of the pixels or of the file of each image; ``None``: not wanted."""

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation ``[C]`` to normalise with, pixels in 0..1."""

    def read(
        self, positions: Tensor, sizes: Sequence[int], augment: Augment | None = None,
        draws: Tensor | None = None,
    ) -> Iterator[Batch]:  # fmt: skip
        """Yield the images at ``positions`` as batches of ``sizes``, on the device.

        Args:
            positions: which images, in order: ``[sum(sizes)]``.
            sizes: how many images in each batch.
            augment: how to change them.
            draws: its random numbers, a row for each of ``positions``.

        Yields:
            uint8 images ``[B, C, H, W]``, their labels ``[B]``.
        """


@dataclass(frozen=True)
class Batches:
    """Normalised float batches ``([B, C, H, W], [B])`` on the device of the part.

    Iterating again gives the same batches. ``order`` lists the positions to visit, ``draws`` has
    the random numbers of ``augment``, a row for each image of the part. Of ``world_size``
    processes each takes its share of every batch, consecutive images, equal to within one: the
    shares of all ranks, one after the other, are the batch of a single process.

    Every process gets the same number of batches and no share is empty: a last batch with fewer
    images than processes joins the one before. With ``for_batchnorm`` the same happens if some
    share would be a single image, because statistics of one image do not exist.

    Raises:
        ConfigError: a batch, or the whole part, has fewer images than there are processes.
    """

    split: Part
    mean: Tensor
    std: Tensor
    batch_size: int
    order: Tensor
    augment: Augment | None = None
    draws: Tensor | None = None
    for_batchnorm: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        check_share(len(self.order), self.batch_size, self.rank, self.world_size, "images")

    def _sizes(self) -> list[int]:
        """Return the number of images in each batch, of all processes together."""
        enough = self.world_size * (2 if self.for_batchnorm else 1)
        return batch_sizes(len(self.order), self.batch_size, enough)

    def __len__(self) -> int:
        return len(self._sizes())

    def __iter__(self) -> Iterator[Batch]:
        device = self.split.device
        scale = (1 / (255 * self.std)).to(device).view(1, -1, 1, 1)
        shift = (self.mean / self.std).to(device).view(1, -1, 1, 1)
        positions, sizes = own_share(self.order, self._sizes(), self.rank, self.world_size)
        draws = None if self.draws is None else self.draws[positions]
        for images, labels in self.split.read(positions, sizes, self.augment, draws):
            yield images.to(torch.float32).mul_(scale).sub_(shift), labels
