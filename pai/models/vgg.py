"""VGG with BatchNorm for small images (Simonyan and Zisserman 2015, arXiv 1409.1556)."""

from torch import Tensor, nn

_STAGE_FACTORS = (1, 2, 4, 8, 8)  # times the width
_CONVOLUTIONS_PER_STAGE = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each ended by max pooling; one linear layer as head.

    The head of the CIFAR variant: global average pooling (a no-op on 32x32 images, where the
    last map is 1x1) and a single linear layer in place of the original's three. With
    ``stem_stride`` 2 the first convolution halves the image: 64x64 images end in a 1x1 map as well.
    """

    def __init__(
        self, depth: int, width: int, num_classes: int, in_channels: int, stem_stride: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for factor, count in zip(_STAGE_FACTORS, _CONVOLUTIONS_PER_STAGE[depth], strict=True):
            out_channels = factor * width
            for _ in range(count):
                stride = stem_stride if not layers else 1
                layers += [
                    nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(),
                ]
                channels = out_channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` if the first map has at least 32x32 pixels."""
        return self.fc(self.features(x).mean(dim=(2, 3)))


def vgg(
    *, num_classes: int, in_channels: int, depth: int = 16, width: int = 64, stem_stride: int = 1
) -> VGG:
    """Build VGG-11, -13, -16 or -19 with BatchNorm (14.7 M parameters at depth 16).

    The stages have 1, 2, 4, 8 and 8 times ``width`` channels; 64 is the original's.

    Raises:
        ValueError: ``depth`` is none of these, or ``width`` or ``stem_stride`` is below 1.
    """
    if depth not in _CONVOLUTIONS_PER_STAGE:
        raise ValueError(
            f"depth must be one of {', '.join(map(str, _CONVOLUTIONS_PER_STAGE))}, got {depth}"
        )
    for option, value in (("width", width), ("stem_stride", stem_stride)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    return VGG(depth, width, num_classes, in_channels, stem_stride)
