"""Targets: classes, probabilities of classes, several classes at once, none at all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import flatten, hessian
from torch import Tensor, nn
from torch.nn import functional as F

import pai

CLASSES = 3


class Sequence(nn.Sequential):
    """Each position is classified: ``[N, C, L]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(1, 2)


def problem(positions: tuple[int, ...]) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a piecewise linear network, inputs, and targets that sum to 0, 1, 2 or others."""
    torch.manual_seed(0)
    kind = Sequence if positions else nn.Sequential
    model = kind(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES)).double()
    x = torch.randn(6, *positions, 4, dtype=torch.float64)
    y = torch.randint(0, 2, (6, CLASSES, *positions), dtype=torch.float64)
    y[0], y[1] = 0.0, 0.7
    return model, x, y


def diagonal(estimator: Any, model: nn.Module, batches: Any, **options: Any) -> Tensor:
    stream = torch.Generator().manual_seed(1)
    every = dict(model.named_parameters())
    named = {name: p for name, p in every.items() if name.endswith("weight")}
    found = pai.curvature_diagonal(
        model, batches, estimator, generator=stream, parameters=named, temperature=1.5, **options
    )
    return flatten(found)


@pytest.mark.filterwarnings("ignore:targets are real numbers that do not sum to 1")
@pytest.mark.parametrize("positions", [(), (2,)], ids=str)
def test_several_classes_at_once(positions: tuple[int, ...]) -> None:
    """There the Hessian of cross-entropy is that of one class times the sum of the targets."""
    model, x, y = problem(positions)
    named = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    truth = hessian(model, named, x, y, 1.5).diag()
    batches = list(zip(x.split(4), y.split(4), strict=True))
    exact = diagonal("exact_ggn", model, batches)
    assert (exact - truth).abs().max() <= 1e-10 * truth.abs().max()
    drawn = diagonal("mc_fisher", model, batches, num_draws=3000)
    assert (drawn - truth).norm() <= 0.02 * truth.norm()


def test_one_class_is_the_same_as_a_row_that_says_so() -> None:
    model, x, _ = problem((2,))
    y = torch.randint(0, CLASSES, (6, 2))
    rows = F.one_hot(y, CLASSES).movedim(-1, 1).double()
    for estimator in ("exact_ggn", "mc_fisher"):
        assert torch.equal(diagonal(estimator, model, [(x, y)]),
                           diagonal(estimator, model, [(x, rows)]))  # fmt: skip


EVERY = pytest.mark.parametrize(
    "estimator", ["empirical_fisher", "mc_fisher", "exact_ggn", "hutchinson"]
)


@pytest.mark.filterwarnings("ignore:targets are real numbers that do not sum to 1")
@EVERY
def test_targets_below_zero_are_no_classes(estimator: str) -> None:
    model, x, y = problem(())
    y[5, 1] = -1.0
    with pytest.raises(ValueError, match=r"^targets are real numbers below zero \(-1\).*loss_fn="):
        diagonal(estimator, model, [(x, y)])


@EVERY
def test_targets_that_are_no_probabilities_are_warned_of(estimator: str) -> None:
    model, x, y = problem(())
    with pytest.warns(UserWarning, match=r"do not sum to 1 \(but to .*loss_fn="):
        diagonal(estimator, model, [(x, y)])
    diagonal(estimator, model, [(x, (y + 1) / (y + 1).sum(1, keepdim=True))])  # would warn


@EVERY
def test_a_single_output_has_no_classes(estimator: str) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    x, y = torch.randn(6, 4).double(), torch.ones(6, 1).double()
    with pytest.raises(ValueError, match=r"one output|logits"):
        diagonal(estimator, model, [(x, y)])


@pytest.mark.parametrize("estimator", ["empirical_fisher", "mc_fisher", "exact_ggn", "hutchinson"])
def test_positions_that_are_to_be_ignored_are_refused_wherever_they_are(estimator: str) -> None:
    model, x, _ = problem((2,))
    y = torch.randint(0, CLASSES, (6, 2))
    y[5, 1] = -100
    with pytest.raises(ValueError, match=r"targets are negative \(-100\)"):
        diagonal(estimator, model, [(x, y)])


@pytest.mark.parametrize("name", ["snip", "fd", "md", "gd", "hd", "grasp", "prospr"])
@pytest.mark.parametrize("loss_fn", [None, F.cross_entropy], ids=["default", "cross_entropy"])
def test_scorers_refuse_them_too(
    name: str, loss_fn: Callable[[Tensor, Tensor], Tensor] | None
) -> None:
    model, x, _ = problem((2,))
    y = torch.randint(0, CLASSES, (6, 2))
    y[:, 1] = -100
    with pytest.raises(ValueError, match="targets are negative"):
        pai.load_scorer(name)(model, [(x, y)], loss_fn=loss_fn)
