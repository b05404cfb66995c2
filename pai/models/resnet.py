"""Residual networks for small images (He et al. 2016, arXiv 1512.03385).

Two families: ``thin_resnet`` is section 4.2 of the paper (three stages of 16, 32, 64 channels,
depth 6n + 2), ``resnet`` is the ImageNet design of section 4.1 (four stages of 64 to 512 channels)
with a 3x3 stem of stride 1 and no max pooling, as is usual for 32x32 images. In both, a shortcut
that changes shape is a 1x1 convolution with BatchNorm (option B). A stem of stride 2 gives 64x64
images (TinyImageNet) the maps of 32x32 images from there on.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity or projection shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 convolutions around an identity or projection shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, global average pooling and one linear layer."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], blocks: Sequence[int], width: int,
        num_classes: int, in_channels: int, stem_stride: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        stages = []
        for stage, count in enumerate(blocks):
            layers = []
            for position in range(count):
                stride = 2 if stage > 0 and position == 0 else 1
                layers.append(block(channels, width * 2**stage, stride))
                channels = width * 2**stage * block.expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` for images ``[B, in_channels, H, W]``."""
        out = self.stages(F.relu(self.bn1(self.conv1(x))))
        return self.fc(out.mean(dim=(2, 3)))


def thin_resnet(
    *, num_classes: int, in_channels: int, depth: int = 20, width: int = 16, stem_stride: int = 1
) -> ResNet:
    """Build the three-stage CIFAR ResNet of depth 6n + 2 (0.27 M parameters at depth 20).

    Raises:
        ValueError: ``depth`` is not 6n + 2 with n >= 1; ``width`` or ``stem_stride`` is below 1.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, 56, ...), got {depth}")
    _check_at_least_one(width=width, stem_stride=stem_stride)
    blocks = [(depth - 2) // 6] * 3
    return ResNet(BasicBlock, blocks, width, num_classes, in_channels, stem_stride)


def resnet(
    *, num_classes: int, in_channels: int, depth: int = 18, width: int = 64, stem_stride: int = 1
) -> ResNet:
    """Build the four-stage ResNet with a small-image stem (11.2 M parameters at depth 18).

    Raises:
        ValueError: ``depth`` is not 18, 34 or 50; ``width`` or ``stem_stride`` is below 1.
    """
    designs: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
        18: (BasicBlock, [2, 2, 2, 2]),
        34: (BasicBlock, [3, 4, 6, 3]),
        50: (Bottleneck, [3, 4, 6, 3]),
    }
    if depth not in designs:
        raise ValueError(f"depth must be one of {', '.join(map(str, designs))}, got {depth}")
    _check_at_least_one(width=width, stem_stride=stem_stride)
    block, blocks = designs[depth]
    return ResNet(block, blocks, width, num_classes, in_channels, stem_stride)


def _check_at_least_one(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def _initialise(model: nn.Module) -> None:
    """Kaiming normal (fan-out, ReLU) for convolutions, as in torchvision; torch's defaults else."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
