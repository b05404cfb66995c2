"""Second derivatives of convolutions are torch's own, whatever the options."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pai.curvature.convolution import FastSecondDerivatives, _Convolution

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
OPTIONS = [
    {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    for stride, padding, dilation, groups, bias in itertools.product(
        (1, 2), (0, 1), (1, 2), (1, 2), (True, False)
    )
]


def product(layer: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor],
            *, fast: bool) -> list[Tensor]:  # fmt: skip
    """Return the Hessian of a curved function of the layer's output times a fixed vector."""
    with FastSecondDerivatives() if fast else contextlib.nullcontext():
        out = layer(x)
    stream = torch.Generator().manual_seed(1)
    vector = [torch.randn(p.shape, generator=stream, dtype=p.dtype) for p in parameters]
    first = torch.autograd.grad(out.tanh().square().sum(), parameters, create_graph=True)
    return list(torch.autograd.grad(first, parameters, vector))


def assert_same(layer: nn.Module, x: Tensor, *, inputs: bool = True) -> None:
    parameters = [*([x.requires_grad_()] if inputs else []), *layer.parameters()]
    found = product(layer, x, parameters, fast=True)
    for actual, expected in zip(found, product(layer, x, parameters, fast=False), strict=True):
        assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_numbers_are_torchs_own(axes: int, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    layer = LAYERS[axes - 1](4, 6, 2, **options).double()  # type: ignore[arg-type]
    x = torch.randn(2, 4, *[5] * axes, dtype=torch.double)
    assert_same(layer, x)
    assert_same(layer, x.detach(), inputs=False)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 4, 6, 5)),
        (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3), (4, 5, 5)),
    ],
    ids=["sides that differ", "same", "circular", "no axis of samples"],
)
def test_other_forms(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert_same(layer.double(), torch.randn(shape, dtype=torch.double))


class Written(nn.Module):
    """A convolution without a module, as networks write it that keep weights themselves."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4, 2, 3)), nn.Parameter(torch.randn(6))
        self.arguments, self.options = arguments, options

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, *self.arguments, **self.options)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), {}), ((2,), {}), (([2], [1], [2]), {}), (((1, 2), (0, 1)), {}),
        ((), {"stride": 2}), ((), {"padding": (1,)}), ((), {"dilation": 2}),
    ],
)  # fmt: skip
def test_functions_with_all_or_few_of_their_arguments(
    arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    layer = Written(*arguments, **options).double()
    x = torch.randn(2, 4, 7, 8, dtype=torch.double)
    with FastSecondDerivatives():
        assert "Convolution" in type(layer(x.clone().requires_grad_()).grad_fn).__name__
    assert_same(layer, x)


def test_one_parameter_alone_and_channels_last() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3).double().to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 5, 5).double().to(memory_format=torch.channels_last)
    for parameter in (layer.weight, layer.bias):
        assert isinstance(parameter, Tensor)
        (found,) = product(layer, x, [parameter], fast=True)
        (expected,) = product(layer, x, [parameter], fast=False)
        assert torch.allclose(found, expected, rtol=1e-12)


def test_what_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []
    apply = _Convolution.apply

    def noticed(*arguments: Any) -> Any:
        taken.append(arguments[0])
        return apply(*arguments)

    monkeypatch.setattr(_Convolution, "apply", noticed)
    layer, x = nn.Conv2d(2, 3, 2), torch.randn(2, 2, 4, 4)
    with FastSecondDerivatives():
        layer(x)
        assert len(taken) == 1
        torch.vmap(layer)(x[:, None])
        layer(x[0])
        nn.Conv2d(2, 3, 3, padding="same")(x)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
    layer(x)
    assert len(taken) == 1
