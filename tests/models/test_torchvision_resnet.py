import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet as torchvision_resnet

from pai.models.torchvision_resnet import imagenet_resnet


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_the_network_is_torchvisions_untrained_one(depth: int) -> None:
    with torch.device("meta"):
        ours = imagenet_resnet(num_classes=7, in_channels=3, depth=depth)
        theirs = getattr(torchvision_resnet, f"resnet{depth}")(num_classes=7)
    assert str(ours) == str(theirs)


def test_its_weights_are_torchvisions_under_the_same_seed() -> None:
    torch.manual_seed(0)
    ours = imagenet_resnet(num_classes=7, in_channels=3, depth=18).state_dict()
    torch.manual_seed(0)
    theirs = torchvision_resnet.resnet18(weights=None, num_classes=7).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("in_channels", [1, 4])
def test_other_channels_change_the_first_convolution_only(in_channels: int) -> None:
    torch.manual_seed(0)
    model = imagenet_resnet(num_classes=7, in_channels=in_channels, depth=18)
    with torch.device("meta"):
        peer = imagenet_resnet(num_classes=7, in_channels=3, depth=18)
    shapes = {name: value.shape for name, value in peer.state_dict().items()}
    changed = {n: v.shape for n, v in model.state_dict().items() if v.shape != shapes[n]}
    assert changed == {"conv1.weight": (64, in_channels, 7, 7)}
    assert isinstance(model.conv1, nn.Conv2d)
    assert (model.conv1.stride, model.conv1.padding) == ((2, 2), (3, 3))
    assert next(iter(model.state_dict())) == "conv1.weight"
    std = float(model.conv1.weight.detach().std())
    assert std == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.1)
    assert model.eval()(torch.zeros(2, in_channels, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("depth", [0, 20, 101])
def test_an_unknown_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"^depth .*18, 34, 50.*{depth}"):
        imagenet_resnet(num_classes=10, in_channels=3, depth=depth)
