import re
from typing import Any

import pytest
import timm
import torch
from torch import nn

from pai.models.timm import timm_model
from pai.prunable import prunable_parameters


def empty(name: str, size: int, **options: object) -> Any:
    with torch.device("meta"):
        return timm_model(
            num_classes=7, in_channels=1, image_size=size, name=name, options=dict(options)
        )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 32), ("vit_tiny_patch16_224", 224), ("resnet18", 8),
        ("mobilenetv3_small_100", 32), ("convnext_atto", 32), ("mixer_s32_224", 64),
        ("swin_tiny_patch4_window7_224", 64), ("deit_tiny_distilled_patch16_224", 32),
        ("efficientnet_b0", 40), ("maxvit_rmlp_pico_rw_256", 64), ("resnetv2_50", 40),
    ],
)  # fmt: skip
def test_image_size_channels_and_classes_are_those_of_the_data(name: str, size: int) -> None:
    model = empty(name, size).eval()
    assert model(torch.empty(2, 1, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_the_network_is_timms_untrained_one_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    ours = timm_model(num_classes=7, in_channels=1, image_size=32, name=name)
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 32} if name.startswith("vit") else {}
    theirs = timm.create_model(name, pretrained=False, num_classes=7, in_chans=1, **size)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name_, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name_], value)


def test_options_reach_timm() -> None:
    model = empty(
        "vit_tiny_patch16_224", 32, drop_rate=0.25, depth=3, class_token=False, global_pool="avg"
    )
    assert model.head_drop.p == 0.25
    assert len(model.blocks) == 3
    assert model.cls_token is None


HEADS = {
    "resnet18": ["fc"],
    "resnetv2_50": ["head.fc"],  # a convolution
    "densenet121": ["classifier"],
    "mobilenetv3_small_100": ["classifier"],
    "efficientnet_b0": ["classifier"],
    "convnext_atto": ["head.fc"],
    "vgg11_bn": ["head.fc"],
    "xception41": ["head.fc"],
    "mixer_s32_224": ["head"],
    "vit_tiny_patch16_224": ["head"],
    "deit_tiny_distilled_patch16_224": ["head", "head_dist"],
    "swin_tiny_patch4_window7_224": ["head.fc"],
    "levit_128s": ["head.linear", "head_dist.linear"],
    "repvit_m0_9": ["head.head.l", "head.head_dist.l"],
    "crossvit_tiny_240": ["head.0", "head.1"],
    "volo_d1_224": ["head", "aux_head"],
    "caformer_s18": ["head.fc.fc1", "head.fc.fc2"],  # timm's classifier is the whole MLP
    "inception_v3": ["fc"],
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_and_nothing_else_is_left_out_of_pruning(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=1013)
    layers = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    kept_dense = {f"{head}.weight" for head in HEADS[name]}
    assert kept_dense <= layers
    assert set(prunable_parameters(model)) == layers - kept_dense
    assert set(prunable_parameters(model, include_classifier=True)) == layers
    assert not any(1013 in p.shape for p in prunable_parameters(model).values())


def test_depthwise_convolutions_are_prunable_and_norms_positions_and_tokens_are_not() -> None:
    mobilenet = prunable_parameters(empty("mobilenetv3_small_100", 32))
    depthwise = mobilenet["blocks.1.0.conv_dw.weight"]
    assert depthwise.shape[1] == 1
    transformer = prunable_parameters(empty("vit_tiny_patch16_224", 32))
    layers = {re.sub(r"\d+", "#", name) for name in transformer}
    assert layers == {
        "patch_embed.proj.weight", "blocks.#.attn.qkv.weight", "blocks.#.attn.proj.weight",
        "blocks.#.mlp.fc#.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet81", "'resnet18'"), ("vit_tiny_patch16_24", "'vit_tiny_patch16_224'"),
        ("resnet18.a1_in1k", "'resnet18'"), ("mobilenet_v3_small", "mobilenetv3_small"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(
        ValueError, match=f"^name .*{re.escape(repr(name))}; did you mean"
    ) as caught:
        empty(name, 32)
    assert nearest in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp", "timm/resnet18", "../resnet18"]
)
def test_nothing_but_timms_own_architectures_can_be_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"^name must be an architecture of timm"):
        empty(name, 32)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_tiny_patch16_224", 8, "16x16.*8x8"), ("vit_tiny_patch16_224", 40, "16x16.*40x40"),
        ("mixer_s32_224", 48, "32x32.*48x48"),
    ],
)  # fmt: skip
def test_an_image_size_that_does_not_fit_is_refused(name: str, size: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"^name '{name}'.*{words}"):
        empty(name, size)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("num_classes", 3, "the run sets it"), ("in_chans", 3, "the run sets it"),
        ("img_size", 3, "the run sets it"), ("pretrained", True, "untrained"),
        ("checkpoint_path", "x.pth", "untrained"), ("pretrained_cfg", {}, "untrained"),
        ("drop_path_rat", 0.1, "drop_path_rat"), ("depth", "three", "depth"),
        ("global_pool", "most", "pool"),
    ],
)  # fmt: skip
def test_an_option_that_timm_or_the_run_refuses_is_named(
    option: str, value: object, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        empty("vit_tiny_patch16_224", 32, **{option: value})
