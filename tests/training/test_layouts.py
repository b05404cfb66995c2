"""Gradients behind normalisations whose outputs are transposed: torch's own are wrong on a CPU.

Truth are the same networks with the normalisation written in plain arithmetic.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_cases import CONSTANT, settings

import pai
from pai.layouts import PlainGradients
from pai.training.optimizers import Sgd
from pai.training.step import MaskedStep


class Arithmetic(nn.Module):
    """What a normalisation computes in eval mode, without its kernel."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm, shape = self.norm, (1, -1, 1, 1)
        if isinstance(norm, nn.BatchNorm2d):
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None and variance is not None
            mean, variance = mean.view(shape), variance.view(shape)
        else:
            mean = x.mean((2, 3), keepdim=True)
            variance = (x - mean).square().mean((2, 3), keepdim=True)
        scaled = (x - mean) / (variance + 1e-5).sqrt()
        weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
        return scaled * weight.view(shape) + bias.view(shape)


class Function(nn.Module):
    """The same by torch's function, which no module stands for."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, nn.BatchNorm2d):
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        assert isinstance(norm, nn.InstanceNorm2d)
        return F.instance_norm(x, weight=norm.weight, bias=norm.bias)


class Network(nn.Module):
    """A convolution, a normalisation, a reordering and a layer on what that makes of the image."""

    def __init__(self, norm: nn.Module, reorder: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.reorder = nn.Conv2d(1, 6, 3, bias=False), norm, reorder
        self.mix = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = torch.tanh(self.mix(self.reorder(self.norm(self.conv(x)))))
        axis = 0 if tokens.shape[1] == len(x) and tokens.shape[0] != len(x) else 1
        return self.head(tokens.mean(axis))


CASES: dict[str, tuple[type[nn.Module], int, tuple[int, int], Callable[[Tensor], Tensor]]] = {
    "one sample as tokens": (nn.BatchNorm2d, 1, (5, 5), lambda x: x.flatten(2).transpose(1, 2)),
    "one sample, instance": (nn.InstanceNorm2d, 1, (5, 5), lambda x: x.flatten(2).transpose(1, 2)),
    "tokens first": (nn.InstanceNorm2d, 4, (5, 5), lambda x: x.flatten(2).permute(2, 0, 1)),
    "height one": (nn.BatchNorm2d, 4, (3, 7), lambda x: x.permute(0, 3, 1, 2).flatten(2)),
    "width one": (nn.BatchNorm2d, 4, (7, 3), lambda x: x.squeeze(3).transpose(1, 2)),
}


def networks(case: str, wrapped: type[nn.Module] | None) -> tuple[Network, Network, Any]:
    """The network, the same in plain arithmetic, and a batch."""
    kind, samples, size, reorder = CASES[case]
    torch.manual_seed(0)
    norm = kind(6, affine=True)
    with torch.no_grad():
        norm.get_parameter("weight").uniform_(0.5, 1.5)
    model = Network(norm, reorder).double().eval()
    truth = copy.deepcopy(model)
    truth.norm = Arithmetic(truth.norm)
    if wrapped is not None:
        model.norm = wrapped(model.norm)
    batch = torch.randn(samples, 1, *size).double(), torch.arange(samples) % 3
    torch.testing.assert_close(model(batch[0]), truth(batch[0]))
    return model, truth, batch


@pytest.mark.filterwarnings("ignore:no fast per-sample rule")  # the samples are on another axis
@pytest.mark.parametrize("wrapped", [None, Function])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["snip", "grasp", "fts", "gts", "hts"])
def test_scores_are_those_of_plain_arithmetic(
    name: str, case: str, wrapped: type[nn.Module] | None
) -> None:
    model, truth, batch = networks(case, wrapped)
    options: dict[str, Any] = {"batch_size": None, "matrix": "hessian"} if name == "hts" else {}
    found, expected = (
        pai.load_scorer(name, **options)(
            network, [batch], generator=torch.Generator().manual_seed(0)
        )["conv.weight"]
        for network in (model, truth)
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_torch_is_still_wrong_without(case: str) -> None:
    """If this fails, torch is mended and ``pai.layouts`` can go."""
    model, truth, (x, y) = networks(case, None)
    found, watched, expected = (
        torch.autograd.grad(F.cross_entropy(logits, y), network.conv.weight)[0]
        for network, logits in (
            (model, model(x)), (model, _watched(model, x)), (truth, truth(x)),
        )
    )  # fmt: skip
    torch.testing.assert_close(watched, expected, rtol=1e-8, atol=1e-12)
    assert not torch.allclose(found, expected, rtol=1e-2)


def _watched(model: nn.Module, x: Tensor) -> Tensor:
    with PlainGradients():
        out: Tensor = model(x)
    return out


@pytest.mark.parametrize("case", CASES)
def test_training_steps_along_the_gradient_of_plain_arithmetic(case: str) -> None:
    model, truth, (x, y) = networks(case, None)
    options = settings(1, Sgd(lr=1.0, momentum=0.0), lr_schedule=CONSTANT, channels_last=False)
    ends = []
    for network in (model.float(), truth.float()):  # as they are in training: in eval mode here
        mask = {"conv.weight": torch.ones_like(network.conv.weight, dtype=torch.bool)}
        MaskedStep(network, mask, options)(x.float(), y, 1.0, None)
        ends.append(network.conv.weight.detach())
    torch.testing.assert_close(*ends)


def test_gradients_in_channels_last_stay_as_they_are() -> None:
    seen = []
    norm = nn.BatchNorm2d(6)
    x = torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    with PlainGradients():
        out = norm(x)
    out.register_hook(lambda gradient: seen.append(gradient.stride()))
    (out.relu() ** 2).sum().backward()
    assert seen == [x.stride()]
