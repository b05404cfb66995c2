"""Networks with parts that torch by itself cannot differentiate twice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pai
from pai.curvature import curved_parameters
from pai.curvature.twice import differentiable_twice

SECOND_ORDER = ["hd", "grasp", "prospr"]  # scorers


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


HARD_SIGMOIDS = {
    "module": nn.Hardsigmoid(),
    "in place": nn.Hardsigmoid(inplace=True),
    "function": Apply(F.hardsigmoid),
    "function in place": Apply(lambda x: F.hardsigmoid(x, True)),
}
every_form = pytest.mark.parametrize("form", HARD_SIGMOIDS)


def squeezed(gate: nn.Module) -> nn.Module:
    """Return a network whose gate is closed, open and in between."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 8, 2), Apply(lambda x: 6 * x), gate,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).double()  # fmt: skip


def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(5, 2, 5, 5, dtype=torch.float64), torch.randint(0, 3, (5,))


def written(x: Tensor) -> Tensor:
    return (x / 6 + 0.5).clamp(0, 1)


@every_form
def test_hard_sigmoid_in_place_and_not(form: str) -> None:
    x = torch.linspace(-5, 5, 21, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (HARD_SIGMOIDS[form], written):
        before = 1.1 * x
        with differentiable_twice():
            out = function(before)
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        results += [(out, first, second, before)]
    for name, found, truth in zip(("out", "first", "second"), *results, strict=False):
        torch.testing.assert_close(found, truth, msg=name)
    changed = "place" in form
    assert torch.equal(results[0][3], results[0][0] if changed else 1.1 * x)


@every_form
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_scores_of_networks_with_hard_sigmoids(name: str, form: str) -> None:
    found, truth = (
        pai.load_scorer(name)(model, [images()], generator=torch.Generator().manual_seed(0))
        for model in (squeezed(HARD_SIGMOIDS[form]), squeezed(Apply(written)))
    )
    assert list(found) == ["0.weight", "2.weight"]
    for key, value in truth.items():
        assert 0 < value.abs().max() < torch.inf
        # torch's first derivative of a hard sigmoid has 1/6 in float32
        assert (found[key] - value).abs().max() <= 1e-7 * value.abs().max()


def test_which_tensors_are_curved_before_a_hard_sigmoid() -> None:
    model = squeezed(nn.Hardsigmoid())
    assert curved_parameters(model, [images()], pai.prunable_parameters(model)) == ["0.weight"]


class Attention(nn.Module):
    """An encoder layer, computed again in the backward pass if ``again``."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.again = again
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        again: Any = checkpoint
        x = again(self.layer, x, use_reentrant=False) if self.again else self.layer(x)
        out: Tensor = self.head(x.mean(1))
        return out


def sequences() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(5, 4, 3, dtype=torch.float64), torch.randint(0, 3, (5,))


@pytest.mark.parametrize("name", ["hd", "grasp"])
def test_attention_in_a_checkpoint(name: str) -> None:
    found, truth = (
        pai.load_scorer(name)(
            Attention(again=again), [sequences()], generator=torch.Generator().manual_seed(0)
        )
        for again in (True, False)
    )
    for key, value in truth.items():
        assert (found[key] - value).abs().max() <= 1e-10 * value.abs().max()


def test_curved_tensors_before_attention_in_a_checkpoint() -> None:
    model = Attention(again=True)
    named = {n: p for n, p in model.named_parameters() if n in ("embed.weight", "head.weight")}
    assert curved_parameters(model, [sequences()], named) == ["embed.weight"]
