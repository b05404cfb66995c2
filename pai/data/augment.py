"""Augmentation of a whole uint8 batch at once, each image with its own draw."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RandomCropFlip:
    """Shift each image by up to ``crop_padding`` pixels (black outside) and maybe mirror it.

    Equals torchvision's ``RandomCrop(H, padding)`` followed by ``RandomHorizontalFlip()`` in
    distribution, drawn per image and applied by one gather.
    """

    crop_padding: int = 0
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must not be negative, got {self.crop_padding}")

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return augmented copies of ``images`` ``[B, C, H, W]``; draws are made on the CPU."""
        count, _, height, width = images.shape
        pad = self.crop_padding
        shifts = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
        mirror = torch.rand(count, generator=generator) < 0.5
        if not self.horizontal_flip:
            mirror = torch.zeros_like(mirror)
        columns = torch.arange(width).expand(count, width)
        columns = torch.where(mirror[:, None], width - 1 - columns, columns) + shifts[1][:, None]
        rows = torch.arange(height) + shifts[0][:, None]
        which = torch.arange(count)[:, None, None]
        index = [t.to(images.device) for t in (which, rows[:, :, None], columns[:, None, :])]
        padded = F.pad(images, (pad, pad, pad, pad))
        return padded[index[0], :, index[1], index[2]].permute(0, 3, 1, 2)
