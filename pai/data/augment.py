"""Augmentation of uint8 images, each with random numbers of its own.

The random numbers of an epoch are drawn in one table with a row for each image of the part. So a
draw depends on the seed, the epoch and the image, not on batch size, number of processes or
number of workers, and it is the same on every device.

Legend: N images of the part, B of the batch, C channels, H x W pixels.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Augment(Protocol):
    """Changes training images at random; all randomness is in the draws."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the random numbers of one epoch: a row for each of ``count`` images."""

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return changed copies of uint8 ``images`` ``[B, C, H, W]``, given their rows."""


@dataclass(frozen=True)
class RandomCropFlip:
    """Shift each image by up to ``crop_padding`` pixels (black outside) and maybe mirror it.

    Equals torchvision's ``RandomCrop(H, padding)`` followed by ``RandomHorizontalFlip()`` in
    distribution.
    """

    crop_padding: int = 0
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must not be negative, got {self.crop_padding}")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``[count, 3]`` (int64): first row and column of the crop, mirrored or not."""
        draws = torch.empty(count, 3, dtype=torch.int64)
        draws[:, :2].random_(0, 2 * self.crop_padding + 1, generator=generator)
        draws[:, 2].random_(0, 1 + self.horizontal_flip, generator=generator)
        return draws

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the crops: one gather over all pixels, on the device of ``images``."""
        pad = self.crop_padding
        if pad == 0 and not self.horizontal_flip:
            return images
        count, channels, height, width = images.shape
        down, right, mirror = draws.T[:, :, None]
        rows = torch.arange(height, device=images.device) + down
        columns = torch.arange(width, device=images.device)
        columns = torch.where(mirror == 1, width - 1 - columns, columns) + right
        pixels = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
        padded = F.pad(images, (pad, pad, pad, pad)).flatten(2)
        pixels = pixels.view(count, 1, -1).expand(-1, channels, -1)
        return padded.gather(2, pixels).view_as(images)


@dataclass(frozen=True)
class RandomResizedCropFlip:
    """Cut out a random box, resize it to ``image_size`` squared and maybe mirror it.

    torchvision's ``RandomResizedCrop`` (area from ``min_area`` to 1 of the image, aspect ratio from
    3/4 to 4/3, bilinear with antialiasing), the usual augmentation for ImageNet (Szegedy et al.,
    arXiv 1409.4842).
    """

    image_size: int
    min_area: float = 0.08
    horizontal_flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= 1:
            raise ValueError(f"min_area must be above 0 and at most 1, got {self.min_area}")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``[count]`` (int64): a seed for each image."""
        return torch.randint(2**63 - 1, (count,), generator=generator)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the crops ``[B, C, image_size, image_size]``, computed one by one."""
        outputs = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, draws.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)
                outputs.append(self._transform(image))
        return torch.stack(outputs)

    @cached_property
    def _transform(self) -> Any:
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(self.image_size, scale=(self.min_area, 1.0), antialias=True)
        return v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if self.horizontal_flip else 0.0)])
