"""Models for the tests of several processes, named in their configurations."""

import os

from torch import Tensor, nn


def convnet(*, num_classes: int, in_channels: int) -> nn.Module:
    """Return a network for 8x8 images without BatchNorm or dropout."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, num_classes),
    )  # fmt: skip


class Fragile(nn.Sequential):
    """Breaks in the second process at the training step that an environment variable gives."""

    steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        if os.environ.get("RANK") == "1" and str(self.steps) == os.environ.get(
            "PAI_TEST_BREAK_AT_STEP"
        ):
            raise RuntimeError("out of memory, say")
        out: Tensor = super().forward(x)
        return out


def fragile(*, num_classes: int, in_channels: int) -> nn.Module:
    """Return :func:`convnet` as a model that may break."""
    return Fragile(*convnet(num_classes=num_classes, in_channels=in_channels).children())
