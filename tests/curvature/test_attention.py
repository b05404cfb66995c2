"""Squares of packed attention projections are autograd's, whatever the layer is called with."""

import warnings
from collections.abc import Callable

import pytest
import torch
from reference import flatten, per_sample_gradients
from torch import Tensor, nn

import pai

N, TOKENS, WIDTH = 4, 3, 4
Call = Callable[[nn.MultiheadAttention, Tensor], Tensor]


class Attending(nn.Module):
    """A network whose attention layer is called by ``call``."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, dropout=0.5)
        self.head = nn.Linear(WIDTH, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + self.call(self.attention, x)).mean(1))


def padding(x: Tensor) -> Tensor:
    """Return which tokens are padding: those that begin with a positive number, but the first."""
    mask = x[..., 0] > 0
    mask[:, 0] = False
    return mask


def causal(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], x.shape[1]).triu(1).bool()


def weighted(layer: nn.MultiheadAttention, x: Tensor, *, average: bool, **options: bool) -> Tensor:
    out, weights = layer(x, x, x, **options)
    assert weights.ndim == (3 if average else 4)
    own = weights.diagonal(dim1=-2, dim2=-1)  # how much a token attends to itself
    return out * (own if average else own[:, 0]).unsqueeze(-1)


def one_by_one(layer: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Sequences without an axis of samples, with a mask by position and one by name."""
    masks = zip(x, padding(x), strict=True)
    return torch.stack([layer(s, s, s, mask, attn_mask=causal(x))[0] for s, mask in masks])


CALLS: dict[str, Call] = {
    "plain": lambda layer, x: layer(x, x, x)[0],
    "padding": lambda layer, x: layer(x, x, x, key_padding_mask=padding(x))[0],
    "padding by position": lambda layer, x: layer(x, x, x, padding(x), False)[0],
    "causal by position": lambda layer, x: layer(x, x, x, None, False, causal(x))[0],
    "causal": lambda layer, x: layer(x, x, x, attn_mask=causal(x), is_causal=True)[0],
    "other keys": lambda layer, x: layer(x, x * 2, x.square())[0],
    "same values": lambda layer, x: layer(x * 2, x, x)[0],
    "same queries": lambda layer, x: layer(x, x, x * 2)[0],
    "weights": lambda layer, x: weighted(layer, x, average=True),
    "weights of heads": lambda layer, x: weighted(
        layer, x, average=False, average_attn_weights=False
    ),
    "without weights": lambda layer, x: layer(x, x, x, need_weights=False)[0],
    "one by one": one_by_one,
}


@pytest.mark.parametrize("name", CALLS)
def test_squares_are_autograds(name: str) -> None:
    torch.manual_seed(0)
    model = Attending(CALLS[name]).double().eval()
    with torch.no_grad():
        model.attention.in_proj_bias.normal_()
    x, y = torch.randn(N, TOKENS, WIDTH).double(), torch.arange(N) % 3
    parameters = pai.prunable_parameters(model, include_classifier=True)
    assert "attention.in_proj_weight" in parameters
    truth = per_sample_gradients(model, parameters, x, y, 1.0).square().mean(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = pai.curvature_diagonal(
            model, [(x, y)], "empirical_fisher", parameters=parameters
        )  # fmt: skip
    assert (flatten(found) - truth).abs().max() <= 1e-10 * truth.abs().max()
    slow = [str(w.message) for w in caught if "no fast per-sample rule" in str(w.message)]
    assert bool(slow) == (name == "one by one")
    assert not any("head" in message for message in slow)


def test_the_layer_has_its_own_forward_again() -> None:
    model = Attending(CALLS["plain"])
    x, y = torch.randn(N, TOKENS, WIDTH), torch.arange(N) % 3
    pai.curvature_diagonal(model, [(x, y)], "empirical_fisher")
    assert "forward" not in model.attention.__dict__
    with pytest.raises(IndexError):
        pai.curvature_diagonal(model, [(x, y + 7)], "empirical_fisher")
    assert "forward" not in model.attention.__dict__
