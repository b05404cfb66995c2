"""Networks in float16 at a high temperature: derivatives are small, and none is lost."""

import copy
from typing import Any

import pytest
import torch
from reference import flatten
from torch import Tensor, nn

import pai


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    ).half()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grasp", {}),
        ("grasp", {"train_batchnorm": True}),
        ("snip", {"temperature": 200.0}),
        ("snip", {"temperature": 200.0, "train_batchnorm": True}),
        ("hts", {"num_probes": 3}),
        ("hts", {"num_probes": 3, "batch_size": None}),
        ("hts", {"num_probes": 3, "batch_size": None, "matrix": "gauss_newton"}),
    ],
)
def test_scores_are_those_of_longer_numbers(name: str, options: dict[str, Any]) -> None:
    model, x, y = network(), torch.randn(40, 2, 8, 8).half(), torch.randint(0, 3, (40,))

    def scores(model: nn.Module, x: Tensor) -> Tensor:
        stream = torch.Generator().manual_seed(0)
        scorer = pai.load_scorer(name, **options)
        return flatten(scorer(model, [(x[:15], y[:15]), (x[15:], y[15:])], generator=stream))

    found, truth = scores(model, x).double(), scores(copy.deepcopy(model).double(), x.double())
    assert (found - truth).norm() <= 0.02 * truth.norm()
    assert (found == 0).float().mean() < 0.01


def test_temperature_must_be_finite() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got inf"):
        pai.curvature_diagonal(network(), [], temperature=float("inf"))
