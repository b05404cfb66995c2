import pytest
import torch
from torch import nn
from torchvision.models import vgg as torchvision_vgg

from pai.models.vgg import VGG, vgg


def empty(depth: int, num_classes: int = 10, in_channels: int = 3) -> VGG:
    with torch.device("meta"):
        return vgg(num_classes=num_classes, in_channels=in_channels, depth=depth)


@pytest.mark.parametrize(("depth", "published"), [(16, 14_728_266), (19, 20_040_522)])
def test_the_published_size_but_for_the_biases_that_batchnorm_makes_redundant(
    depth: int, published: int
) -> None:
    model = empty(depth)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(convolution.bias is None for convolution in convolutions)
    biases = sum(convolution.out_channels for convolution in convolutions)
    assert sum(parameter.numel() for parameter in model.parameters()) + biases == published


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_depth_counts_convolutions_and_the_originals_three_linear_layers(depth: int) -> None:
    modules = list(empty(depth).modules())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in modules)
    assert convolutions + 3 == depth
    assert sum(isinstance(module, nn.Linear) for module in modules) == 1
    assert sum(isinstance(module, nn.BatchNorm2d) for module in modules) == convolutions


@pytest.mark.parametrize(("depth", "letter"), [(11, "A"), (13, "B"), (16, "D"), (19, "E")])
def test_the_features_are_torchvisions(depth: int, letter: str) -> None:
    torch.manual_seed(0)
    peer = torchvision_vgg.make_layers(torchvision_vgg.cfgs[letter], batch_norm=True)
    with torch.no_grad():
        for module in peer:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.zero_()
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
    model = vgg(num_classes=10, in_channels=3, depth=depth).eval()
    theirs = [
        value for name, value in peer.state_dict().items()
        if not (name.endswith("bias") and isinstance(peer[int(name.split(".")[0])], nn.Conv2d))
    ]  # fmt: skip
    model.features.load_state_dict(dict(zip(model.features.state_dict(), theirs, strict=True)))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = peer.eval()(images)
        assert features.shape == (2, 512, 1, 1) and float(features.std()) > 1e-3
        torch.testing.assert_close(model.features(images), features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            model(images), model.fc(features.flatten(1)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("side", [32, 40, 64])
def test_images_from_32_pixels_give_logits(side: int) -> None:
    model = empty(11, num_classes=7, in_channels=1)
    assert model(torch.empty(3, 1, side, side, device="meta")).shape == (3, 7)


def test_a_stem_of_stride_2_gives_images_of_64_pixels_the_maps_of_32() -> None:
    with torch.device("meta"):
        model, plain = (vgg(num_classes=200, in_channels=3, stem_stride=s) for s in (2, 1))
        assert model.features[0](torch.empty(1, 3, 64, 64)).shape == (1, 64, 32, 32)
        assert model.features(torch.empty(1, 3, 64, 64)).shape == (1, 512, 1, 1)
        assert plain.features(torch.empty(1, 3, 64, 64)).shape == (1, 512, 2, 2)
    assert str(model.features[1:]) == str(plain.features[1:])
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())


def test_a_stem_stride_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^stem_stride must .*0"):
        vgg(num_classes=10, in_channels=3, stem_stride=0)


def test_the_width_is_the_number_of_channels_of_the_first_stage() -> None:
    with torch.device("meta"):
        model = vgg(num_classes=10, in_channels=3, depth=11, width=16)
    channels = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [16, 32, 64, 64, 128, 128, 128, 128]
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    with pytest.raises(ValueError, match=r"^width must .*0"):
        vgg(num_classes=10, in_channels=3, width=0)


@pytest.mark.parametrize("side", [1, 8, 31])
def test_smaller_images_are_refused(side: int) -> None:
    model = vgg(num_classes=10, in_channels=1, depth=11).eval()
    with pytest.raises(RuntimeError, match=r"[Oo]utput size is too small"):
        model(torch.zeros(2, 1, side, side))


def test_initialisation_is_reproducible_under_a_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(vgg(num_classes=10, in_channels=3, depth=11).state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].ndim >= 2]
    assert drawn and not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("depth", [0, 12, 17, 20])
def test_an_unknown_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"11, 13, 16, 19.*{depth}"):
        vgg(num_classes=10, in_channels=3, depth=depth)
