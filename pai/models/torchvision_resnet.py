"""torchvision's ResNets for ImageNet (He et al. 2016, arXiv 1512.03385, section 4.1)."""

from torch import nn

_DEPTHS = (18, 34, 50)


def imagenet_resnet(*, num_classes: int, in_channels: int, depth: int = 18) -> nn.Module:
    """Build torchvision's ResNet, untrained: 7x7 stem of stride 2, max pooling, four stages.

    11.7 M parameters at depth 18, 25.6 M at depth 50, for 1,000 classes. In the bottleneck blocks
    the 3x3 convolution has the stride ("v1.5"). torchvision builds for three channels; for any
    other number the first convolution is made anew with the same shape, stride and initialization.

    Raises:
        ValueError: ``depth`` is not 18, 34 or 50.
    """
    if depth not in _DEPTHS:
        raise ValueError(f"depth must be one of {', '.join(map(str, _DEPTHS))}, got {depth}")
    from torchvision.models import resnet

    builders = {18: resnet.resnet18, 34: resnet.resnet34, 50: resnet.resnet50}
    model: nn.Module = builders[depth](weights=None, num_classes=num_classes)
    if in_channels != 3:
        stem = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = stem
    return model
