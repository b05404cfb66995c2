"""Per-sample rules of convolutions whose options were changed after construction."""

import warnings
from typing import Any

import pytest
import torch
from reference import flatten, per_sample_gradients
from torch import Tensor, nn

import pai
from pai.curvature import fused
from pai.curvature.rules import RULES, padded

CHANGES: dict[str, dict[str, Any]] = {
    "pairs": {"stride": (1, 1), "dilation": (2, 2), "padding": (2, 2)},
    "sides that differ": {"stride": (2, 1), "dilation": (1, 2), "padding": (0, 3)},
    "one number": {"stride": 1, "dilation": 2, "padding": 2},
    "one of one": {"stride": (1,), "dilation": [2], "padding": (2,)},
    "same": {"stride": 1, "dilation": 2, "padding": "same"},
    "valid": {"padding": "valid"},
    "no padding": {"padding": 0},
}


def changed(layer: nn.Module, options: dict[str, Any]) -> nn.Module:
    for name, value in options.items():
        first = value[:1] if isinstance(value, tuple) and isinstance(layer, nn.Conv1d) else value
        setattr(layer, name, first)
    return layer


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_options_changed_after_construction(kind: Any, change: str, mode: str) -> None:
    axes = 1 if kind is nn.Conv1d else 2
    torch.manual_seed(0)
    layer = kind(4, 6, 3, padding=1, stride=2, groups=2, padding_mode=mode)
    model = nn.Sequential(
        nn.Linear(7, 7), changed(layer, CHANGES[change]), nn.Flatten(), nn.LazyLinear(3)
    ).double()
    x, y = torch.randn(5, 4, *[7] * axes, dtype=torch.float64), torch.arange(5) % 3
    model(x)
    named = pai.prunable_parameters(model)
    truth = per_sample_gradients(model, named, x, y, 1.0).square().mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of the slow path
        found = flatten(pai.curvature_diagonal(model, [(x, y)], "empirical_fisher"))
    assert (found - truth).abs().max() <= 1e-10 * truth.max()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_the_kernel_for_gpus_reads_the_options_alike(kind: Any, change: str) -> None:
    layer = changed(kind(4, 6, 3, padding=1, stride=2, groups=2), CHANGES[change])
    x = torch.randn(2, 4, *[7] * (1 if kind is nn.Conv1d else 2))
    inner = RULES[kind].inner(layer, x, layer(x))
    assert fused.patches(layer, x).shape == inner.shape  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_a_valid_layer_pads_nothing(kind: Any) -> None:
    layer = kind(1, 1, 3, padding="valid")
    x = torch.randn(1, 1, *[7] * (1 if kind is nn.Conv1d else 2))
    assert padded(layer, x) is x


@pytest.mark.parametrize(
    ("kernel", "dilation", "widths"), [(3, 1, (1, 1)), (4, 1, (1, 2)), (4, 3, (4, 5))]
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_the_same_size_takes_the_larger_half_behind(
    kernel: int, dilation: int, widths: tuple[int, int]
) -> None:
    layer = nn.Conv1d(1, 1, kernel, padding="same", dilation=dilation, bias=False)
    x: Tensor = torch.randn(1, 1, 9)
    assert padded(layer, x).shape[2] == 9 + sum(widths)
    plain = nn.Conv1d(1, 1, kernel, dilation=dilation, bias=False)
    plain.weight = layer.weight
    torch.testing.assert_close(plain(padded(layer, x)), layer(x))
