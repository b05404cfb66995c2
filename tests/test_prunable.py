from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune

from pai.models.resnet import thin_resnet
from pai.models.vgg import vgg
from pai.prunable import classifier, prunable_parameters


def names(model: nn.Module, *, include_classifier: bool = False) -> list[str]:
    return list(prunable_parameters(model, include_classifier=include_classifier))


def test_convolutions_and_linear_layers_are_prunable_and_nothing_else() -> None:
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(5, 4), "conv1": nn.Conv1d(2, 3, 3), "conv2": nn.Conv2d(2, 3, 3),
            "conv3": nn.Conv3d(2, 3, 3), "up1": nn.ConvTranspose1d(2, 3, 3),
            "up2": nn.ConvTranspose2d(2, 3, 3), "up3": nn.ConvTranspose3d(2, 3, 3),
            "bn1": nn.BatchNorm1d(3), "bn2": nn.BatchNorm2d(3), "layer": nn.LayerNorm([3, 3]),
            "group": nn.GroupNorm(1, 3), "instance": nn.InstanceNorm2d(3, affine=True),
            "rms": nn.RMSNorm([3, 3]), "prelu": nn.PReLU(), "linear": nn.Linear(3, 4),
            "weight": nn.ParameterDict({"weight": nn.Parameter(torch.ones(3, 3))}),
            "head": nn.Linear(4, 2),
        }
    )  # fmt: skip
    body = ["conv1", "conv2", "conv3", "up1", "up2", "up3", "linear"]
    assert names(model) == [f"{name}.weight" for name in body]
    assert names(model, include_classifier=True) == [f"{name}.weight" for name in [*body, "head"]]


def test_the_parameters_themselves_are_returned() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert prunable_parameters(model)["0.weight"] is model[0].weight


def test_subclasses_count_as_their_family() -> None:
    class Own(nn.Conv2d):
        pass

    assert names(nn.Sequential(Own(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))) == ["0.weight"]


def test_the_projections_of_a_resnet_are_in_and_their_norms_are_out() -> None:
    model = thin_resnet(num_classes=4, in_channels=1, depth=14, width=2)
    expected = [name for name, p in model.named_parameters() if p.ndim == 4]
    assert names(model) == expected
    assert "stages.1.0.shortcut.0.weight" in expected
    assert "stages.1.0.shortcut.1.weight" not in names(model, include_classifier=True)
    assert names(model, include_classifier=True) == [*expected, "fc.weight"]


def test_every_convolution_of_a_vgg_is_in() -> None:
    with torch.device("meta"):
        model = vgg(num_classes=10, in_channels=3, depth=16)
    sizes = [parameter.numel() for parameter in prunable_parameters(model).values()]
    assert len(sizes) == 13 and sum(sizes) == 14_710_464


def test_packed_attention_projections_are_in() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    model = nn.Sequential(layer, nn.Linear(8, 3))
    assert names(model) == [
        "0.self_attn.in_proj_weight", "0.self_attn.out_proj.weight",
        "0.linear1.weight", "0.linear2.weight",
    ]  # fmt: skip


def test_separate_attention_projections_are_in() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True)
    model = nn.ModuleDict({"attention": attention, "head": nn.Linear(8, 3)})
    assert names(model) == [
        "attention.q_proj_weight", "attention.k_proj_weight", "attention.v_proj_weight",
        "attention.out_proj.weight",
    ]  # fmt: skip


def test_all_of_a_vision_transformers_blocks_are_in_and_its_head_is_out() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, depth=2, num_classes=10
    )
    blocks = [
        f"blocks.{block}.{layer}.weight"
        for block in range(2)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert names(model) == ["patch_embed.proj.weight", *blocks]
    assert names(model, include_classifier=True) == [
        "patch_embed.proj.weight",
        *blocks,
        "head.weight",
    ]


def test_a_timm_model_says_itself_which_layer_is_its_classifier() -> None:
    model = timm.create_model("resnet10t", pretrained=False, num_classes=3)
    model.registered_later = nn.Linear(2, 2)
    assert classifier(model) is model.fc
    assert "registered_later.weight" in names(model) and "fc.weight" not in names(model)


def test_a_timm_model_with_two_heads_keeps_both_dense() -> None:
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", pretrained=False, img_size=32, depth=1, num_classes=10
    )
    heads = {"head.weight", "head_dist.weight"}
    assert heads <= set(names(model, include_classifier=True))
    assert not heads & set(names(model))


def test_a_timm_model_without_a_head_has_no_classifier() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, depth=1, num_classes=0
    )
    assert names(model) == names(model, include_classifier=True)
    assert "blocks.0.mlp.fc2.weight" in names(model)


def test_a_shared_parameter_appears_once_under_its_first_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    assert names(model) == ["0.weight"]
    model.add_module("again", model[0])
    assert names(model, include_classifier=True) == ["0.weight", "3.weight"]


def test_a_weight_shared_with_the_classifier_counts_as_the_classifiers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert names(model) == ["1.weight"]
    assert names(model, include_classifier=True) == ["0.weight", "1.weight"]


def test_an_embedding_tied_to_the_output_layer_stays_dense_by_default() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    model[2].weight = model[0].weight
    assert names(model) == ["1.weight"]


def test_a_convolution_can_be_the_classifier() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.Flatten())
    assert names(model) == ["0.weight"]
    assert classifier(model) is model[2]


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.Flatten(), nn.Linear(3, 2))])
def test_a_single_linear_layer_is_the_classifier(model: nn.Module) -> None:
    assert names(model) == []
    assert len(names(model, include_classifier=True)) == 1


def test_a_model_without_weights_has_nothing_prunable_and_no_classifier() -> None:
    model = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.BatchNorm1d(3))
    assert names(model, include_classifier=True) == []
    assert classifier(model) is None


def test_frozen_parameters_and_evaluation_mode_make_no_difference() -> None:
    model = thin_resnet(num_classes=4, in_channels=1, depth=8, width=2)
    expected = names(model)
    model.eval().requires_grad_(False)
    assert names(model) == expected
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_head_with_a_computed_weight_is_still_the_classifier_and_is_named() -> None:
    model = nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"^4: not prunable, as the weight is computed"):
        names = list(prunable_parameters(model))
    assert names == ["0.weight", "2.weight"]


@pytest.mark.parametrize("inner", ["0", "2"])
def test_a_hidden_layer_with_a_computed_weight_is_left_out_and_named(inner: str) -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    prune.identity(model.get_submodule(inner), "weight")
    with pytest.warns(UserWarning, match=rf"^{inner}: not prunable"):
        names = list(prunable_parameters(model))
    assert names == [f"{2 - int(inner)}.weight"]


def test_all_that_is_left_out_is_named_and_a_layer_without_a_shape_is_refused() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    for name in ("0", "2"):
        prune.identity(model.get_submodule(name), "weight")
    with pytest.warns(UserWarning, match=r"^0, 2: not prunable"):
        assert list(prunable_parameters(model)) == ["1.weight"]
    with pytest.raises(ValueError, match=r"^the weight of LazyLinear has no shape yet"):
        prunable_parameters(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)))


def test_wrappers_for_several_devices_are_looked_through() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(5, 3), nn.Linear(4, 5)

        def get_classifier(self) -> nn.Module:
            return self.head

    assert list(prunable_parameters(nn.DataParallel(Heads()))) == ["module.body.weight"]


def test_a_lazy_layer_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="run the model on one batch first"):
        prunable_parameters(nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3)))


@pytest.mark.parametrize("several", [tuple, list])
def test_heads_are_named_by_function_and_by_configuration(several: type) -> None:
    class Model(nn.Module):
        """Names one head by ``get_classifier``, the other in its configuration."""

        def __init__(self, named: Any) -> None:
            super().__init__()
            self.body, self.fc, self.aux = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)
            self.pretrained_cfg = {"classifier": named}

        def get_classifier(self) -> Any:
            return several([self.fc])

    assert names(Model("aux")) == names(Model(("aux",))) == ["body.weight"]
    assert names(Model(None)) == ["body.weight", "aux.weight"]


def test_a_model_that_names_no_head_has_none() -> None:
    class Headless(nn.Sequential):
        def get_classifier(self) -> None:
            return None

    model = Headless(nn.Linear(4, 4), nn.Linear(4, 2))
    assert classifier(model) is None
    assert names(model) == ["0.weight", "1.weight"]
