from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from pai.flops import forward_cost
from pai.models.resnet import resnet
from pai.prunable import prunable_parameters


def keep_share(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Return a mask that keeps every third weight of the named parameters."""
    return {
        name: torch.arange(model.get_parameter(name).numel())
        .remainder(3)
        .eq(0)
        .view(model.get_parameter(name).shape)
        for name in names
    }


def share(keep: Tensor) -> float:
    return int(keep.sum()) / keep.numel()


def layer_flops(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return 2 x multiply-accumulates of each convolution and linear layer, from the shapes."""
    flops: dict[str, int] = {}

    def note(name: str) -> None:
        def hook(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
            per_output = module.get_parameter("weight")[0].numel()
            flops[f"{name}.weight"] = 2 * out.numel() * per_output

        model.get_submodule(name).register_forward_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            note(name)
    with torch.no_grad():
        model.eval()(x)
    return flops


CONVNET = nn.Sequential(
    nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
    nn.Conv2d(6, 9, 3, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 5),
)  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions_and_linear_layers_are_their_shapes_times_their_density(batch: int) -> None:
    x = torch.randn(batch, 4, 11, 11)
    flops = layer_flops(CONVNET, x[:1])
    mask = keep_share(CONVNET, ["0.weight", "3.weight"])
    cost = forward_cost(CONVNET, mask, x)
    assert cost.forward_flops_dense == sum(flops.values())
    expected = sum(n * share(mask[name]) if name in mask else n for name, n in flops.items())
    assert cost.forward_flops_masked == round(expected)
    total = sum(p.numel() for p in CONVNET.parameters())
    assert cost.parameters_dense == total
    assert cost.parameters_kept == total - sum(int((~keep).sum()) for keep in mask.values())


def test_resnet18_has_its_well_known_cost() -> None:
    model = resnet(num_classes=10, in_channels=3)
    x = torch.randn(1, 3, 32, 32)
    cost = forward_cost(model, {}, x)
    assert cost.forward_flops_dense == sum(layer_flops(model, x).values())
    assert cost.forward_flops_dense == pytest.approx(2 * 0.556e9, rel=0.01)
    assert cost.forward_flops_masked == cost.forward_flops_dense
    assert cost.parameters_kept == cost.parameters_dense == 11_173_962


def test_a_model_without_weights_left_costs_only_what_is_not_pruned() -> None:
    model = resnet(num_classes=10, in_channels=3, width=4)
    mask = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in prunable_parameters(model).items()}
    cost = forward_cost(model, mask, torch.randn(1, 3, 32, 32))
    assert cost.forward_flops_masked == 2 * 32 * 10  # the classifier


@pytest.mark.parametrize("fused", [False, True])
def test_attention_of_timm_is_counted_and_only_its_projections_are_masked(fused: bool) -> None:
    width, depth, tokens = 24, 2, 17
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=width, depth=depth,
        num_heads=3, num_classes=10,
    )  # fmt: skip
    blocks: Any = model.blocks
    for block in blocks:
        block.attn.fused_attn = fused
    x = torch.randn(1, 3, 16, 16)
    layers = layer_flops(model, x)
    attention = depth * 2 * (2 * tokens * tokens * width)  # scores, and their use, per block
    mask = keep_share(model, list(prunable_parameters(model)))
    cost = forward_cost(model, mask, x)
    assert cost.forward_flops_dense == sum(layers.values()) + attention
    masked = sum(n * share(mask[name]) if name in mask else n for name, n in layers.items())
    assert cost.forward_flops_masked == round(masked + attention)


def test_packed_projections_of_torchs_attention_are_masked() -> None:
    length, width = 7, 12

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(width, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attention(x, x, x)[0]
            return out

    model = Net()
    mask = keep_share(model, ["attention.in_proj_weight"])
    cost = forward_cost(model, mask, torch.randn(2, length, width))
    packed, projected = 2 * length * width * 3 * width, 2 * length * width * width
    attention = 2 * 2 * length * length * width
    assert cost.forward_flops_dense == packed + projected + attention
    kept = packed * share(mask["attention.in_proj_weight"])
    assert cost.forward_flops_masked == round(kept + projected + attention)


class Calls(nn.Module):
    """Does something with a layer or parameter, for the tests below."""

    def __init__(self, held: Any, does: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.held, self._does = held, does

    def forward(self, x: Tensor) -> Tensor:
        return self._does(self.held, x)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_the_products_they_consist_of(layer: Any) -> None:
    steps, width, inner = 9, 5, 6
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[layer]
    model = Calls(layer(width, inner, batch_first=True), lambda held, x: held(x)[0])
    mask = keep_share(model, ["held.weight_hh_l0"])
    before = torch.backends.mkldnn.enabled
    cost = forward_cost(model, mask, torch.randn(2, steps, width))
    assert torch.backends.mkldnn.enabled == before
    into, again = (2 * steps * gates * inner * size for size in (width, inner))
    assert cost.forward_flops_dense == into + again
    assert cost.forward_flops_masked == round(into + again * share(mask["held.weight_hh_l0"]))
    assert cost.uncounted == []


def test_bilinear_layers_are_counted() -> None:
    model = Calls(nn.Bilinear(4, 7, 3), lambda held, x: held(x[:, :4], x))
    mask = keep_share(model, ["held.weight"])
    cost = forward_cost(model, mask, torch.randn(2, 7))
    assert cost.forward_flops_dense == 2 * 3 * (4 * 7 + 4)
    assert cost.forward_flops_masked == round(2 * 3 * 32 * share(mask["held.weight"]))


def test_matrices_of_operations_without_a_formula_are_named() -> None:
    def distance(held: Any, x: Tensor) -> Tensor:
        first, table, norm, weight = held["layer"], held["table"], held["norm"], held["weight"]
        return torch.cdist(norm(first(x) + table.weight[:1]), weight.weight, p=1)

    held = nn.ModuleDict({"layer": nn.Linear(5, 7), "table": nn.Embedding(4, 7),
                          "norm": nn.LayerNorm(7), "weight": nn.Embedding(3, 7)})  # fmt: skip
    model = Calls(held, distance)
    cost = forward_cost(model, {}, torch.randn(2, 5))
    assert cost.forward_flops_dense == 2 * 35
    assert cost.uncounted == ["held.weight.weight"]


def test_parts_of_one_memory_have_their_own_density() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    flat = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(flat, model.parameters())
    mask = {"0.weight": torch.zeros(7, 5, dtype=torch.bool),
            "2.weight": torch.ones(3, 7, dtype=torch.bool)}  # fmt: skip
    cost = forward_cost(model, mask, torch.randn(1, 5))
    assert (cost.forward_flops_dense, cost.forward_flops_masked) == (2 * (35 + 21), 2 * 21)


def test_the_queries_of_cross_attention_have_the_density_of_their_rows() -> None:
    width, asked, given = 8, 2, 50
    queries = torch.randn(1, asked, width)
    attention = nn.MultiheadAttention(width, 1, batch_first=True, bias=False)
    model = Calls(attention, lambda held, x: held(queries, x, x, need_weights=False)[0])
    rows = torch.zeros(3 * width, width, dtype=torch.bool)
    rows[:width] = True  # those that make the queries
    cost = forward_cost(model, {"held.in_proj_weight": rows}, torch.randn(1, given, width))
    made, out = 2 * asked * width * width, 2 * asked * width * width
    products = 2 * (2 * asked * given * width)
    assert cost.forward_flops_dense == made + 2 * (2 * given * width * width) + products + out
    assert cost.forward_flops_masked == made + products + out


def test_counting_changes_nothing() -> None:
    model = resnet(num_classes=10, in_channels=3, width=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    forward_cost(model, {}, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
