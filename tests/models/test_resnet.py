import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from pai.models.resnet import BasicBlock, Bottleneck, ResNet, resnet, thin_resnet

Builder = Callable[..., ResNet]


def empty(builder: Builder, depth: int, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Build without memory or random numbers: shapes only."""
    with torch.device("meta"):
        return builder(num_classes=num_classes, in_channels=in_channels, depth=depth)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "published"), [(18, 11_173_962), (34, 21_282_122), (50, 23_520_842)]
)
def test_the_four_stage_networks_have_the_published_size(depth: int, published: int) -> None:
    assert size(empty(resnet, depth)) == published


@pytest.mark.parametrize(
    ("depth", "published"), [(20, 269_722), (32, 464_154), (56, 853_018), (110, 1_727_962)]
)
def test_the_thin_networks_have_the_published_size_but_for_two_projections(
    depth: int, published: int
) -> None:
    model = empty(thin_resnet, depth)
    projections = [
        block.shortcut for block in model.modules()
        if isinstance(block, BasicBlock) and not isinstance(block.shortcut, nn.Identity)
    ]  # fmt: skip
    assert len(projections) == 2  # the paper's option A has no parameters in their place
    assert size(model) - sum(size(projection) for projection in projections) == published


@pytest.mark.parametrize(
    ("builder", "depth"),
    [
        (thin_resnet, 8), (thin_resnet, 20), (thin_resnet, 56),
        (resnet, 18), (resnet, 34), (resnet, 50),
    ],
)  # fmt: skip
def test_depth_counts_the_layers_on_the_main_path(builder: Builder, depth: int) -> None:
    model = empty(builder, depth)
    weighted = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]  # fmt: skip
    assert len(weighted) == depth


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_the_function_is_torchvisions_with_a_small_stem(depth: int) -> None:
    torch.manual_seed(0)
    peer = getattr(torchvision_resnet, f"resnet{depth}")(num_classes=7)
    peer.conv1, peer.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    model = resnet(num_classes=7, in_channels=3, depth=depth)
    with torch.no_grad():
        for name, buffer in peer.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    theirs = list(peer.state_dict().values())
    ours = model.state_dict()
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs]
    model.load_state_dict(dict(zip(ours, theirs, strict=True)))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        logits = peer.eval()(images)
        assert float((logits[0] - logits[1]).abs().max()) > 0.1  # the network is alive
        torch.testing.assert_close(model.eval()(images), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("builder", "depth", "shapes"),
    [
        (thin_resnet, 20, [(16, 32), (32, 16), (64, 8)]),
        (resnet, 18, [(64, 32), (128, 16), (256, 8), (512, 4)]),
        (resnet, 50, [(256, 32), (512, 16), (1024, 8), (2048, 4)]),
    ],
)
def test_each_stage_halves_the_image_and_doubles_the_channels(
    builder: Builder, depth: int, shapes: list[tuple[int, int]]
) -> None:
    model = empty(builder, depth)
    out: Tensor = model.conv1(torch.empty(2, 3, 32, 32, device="meta"))
    for stage, (channels, side) in zip(model.stages, shapes, strict=True):
        out = stage(out)
        assert out.shape == (2, channels, side, side)


@pytest.mark.parametrize(("builder", "width"), [(thin_resnet, 16), (resnet, 64)])
def test_a_stem_of_stride_2_gives_images_of_64_pixels_the_maps_of_32(
    builder: Builder, width: int
) -> None:
    with torch.device("meta"):
        model = builder(num_classes=200, in_channels=3, stem_stride=2)
        plain = builder(num_classes=200, in_channels=3)
    stem = [m.conv1(torch.empty(1, 3, s, s, device="meta")) for m, s in ((model, 64), (plain, 32))]
    assert stem[0].shape == stem[1].shape == (1, width, 32, 32)
    assert size(model) == size(plain)
    assert str(model.stages) == str(plain.stages)


@pytest.mark.parametrize("builder", [thin_resnet, resnet])
@pytest.mark.parametrize("side", [1, 8, 17, 64])
def test_any_image_size_and_channel_count_gives_logits(builder: Builder, side: int) -> None:
    depth = 20 if builder is thin_resnet else 18
    model = empty(builder, depth, num_classes=7, in_channels=1)
    assert model(torch.empty(3, 1, side, side, device="meta")).shape == (3, 7)


@pytest.mark.parametrize("in_channels", [2, 4])
def test_images_with_other_channels_are_refused(in_channels: int) -> None:
    model = thin_resnet(num_classes=3, in_channels=3, depth=8, width=2)
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.zeros(2, in_channels, 8, 8))


@pytest.mark.parametrize("block", [BasicBlock(6, 6, 1), Bottleneck(24, 6, 1)])
def test_a_block_whose_branch_is_silent_is_the_identity(block: BasicBlock | Bottleneck) -> None:
    last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
    nn.init.zeros_(last.weight)
    x = torch.rand(2, 6 * block.expansion, 5, 5)
    assert torch.equal(block(x), x)
    assert torch.equal(block(-x), torch.zeros_like(x))


@pytest.mark.parametrize(
    ("builder", "options"), [(thin_resnet, {"depth": 14, "width": 4}), (resnet, {"width": 4})]
)
def test_initialisation_is_reproducible_under_a_seed(
    builder: Builder, options: dict[str, int]
) -> None:
    def state(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return builder(num_classes=10, in_channels=3, **options).state_dict()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].ndim >= 2]
    assert drawn and not any(torch.equal(first[name], other[name]) for name in drawn)


def test_convolutions_start_with_kaimings_variance_and_batchnorm_as_identity() -> None:
    torch.manual_seed(0)
    model = thin_resnet(num_classes=10, in_channels=3, depth=20, width=32)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            weight = module.weight.detach().double()
            tolerance = 5 / math.sqrt(2 * weight.numel())
            assert float(weight.std()) == pytest.approx(math.sqrt(2 / fan_out), rel=tolerance)
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())
            assert module.running_mean is not None and not module.running_mean.any()


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 9, 18, 21])
def test_a_thin_depth_that_is_not_6n_plus_2_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth .*{depth}"):
        thin_resnet(num_classes=10, in_channels=3, depth=depth)


@pytest.mark.parametrize("depth", [0, 17, 20, 101])
def test_an_unknown_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"18, 34, 50.*{depth}"):
        resnet(num_classes=10, in_channels=3, depth=depth)


@pytest.mark.parametrize("builder", [thin_resnet, resnet])
@pytest.mark.parametrize("option", ["width", "stem_stride"])
def test_a_width_or_stride_below_one_is_refused(builder: Builder, option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option} must .*0"):
        builder(num_classes=10, in_channels=3, **{option: 0})
