"""Drawing labels, and what a Monte-Carlo Fisher makes of them."""

from typing import Any

import pytest
import torch
from cases import Case, case_named
from reference import flatten, per_sample_gradients
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.curvature import fisher
from pai.curvature.fisher import draw_labels


@pytest.mark.parametrize(
    ("probabilities", "numbers", "labels"),
    [
        ([0.2, 0.3, 0.5], [0.0, 0.19, 0.21, 0.49, 0.51, 0.99], [0, 0, 1, 1, 2, 2]),
        ([0.0, 1.0], [0.0, 0.5], [1, 1]),  # the first class is impossible
        ([0.5, 0.0, 0.5], [0.5], [2]),  # so is the second
        ([1.0, 3.0], [0.2, 0.3, 0.9], [0, 1, 1]),  # sums that are not one, from rounding
        ([0.5, 0.5], [1.0], [1]),  # what rounds up to the sum
    ],
)
def test_a_number_is_the_label_whose_step_it_falls_on(
    probabilities: list[float], numbers: list[float], labels: list[int]
) -> None:
    drawn = draw_labels(torch.tensor([probabilities]), torch.tensor([numbers]).double())
    assert drawn.tolist() == [labels]


def test_each_prediction_of_a_sequence_has_its_own_label() -> None:
    probabilities = F.one_hot(torch.tensor([[4, 0], [2, 3]]), 5).float()  # [B, L, C]
    drawn = draw_labels(probabilities, torch.rand(2, 2, 3).double())
    assert drawn.tolist() == [[[4] * 3, [0] * 3], [[2] * 3, [3] * 3]]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 20.0])
@pytest.mark.parametrize(
    "case", [case_named("mlp_tanh"), case_named("residual")], ids=lambda c: c.name
)
def test_squares_are_of_the_loss_at_the_temperature_with_the_labels_drawn(
    case: Case, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = case.problem()
    asked: list[Tensor] = []
    drawn: list[Tensor] = []

    def draw(probabilities: Tensor, numbers: Tensor) -> Tensor:
        asked.append(probabilities)
        drawn.append((numbers * 3).long())
        return drawn[-1]

    monkeypatch.setattr(fisher, "draw_labels", draw)
    parameters = pai.prunable_parameters(model, include_classifier=True)
    found = pai.curvature_diagonal(
        model, [(x, y)], "mc_fisher", temperature=temperature, num_draws=2, parameters=parameters
    )
    truth = torch.stack(
        [
            per_sample_gradients(model, parameters, x, labels, temperature).square().mean(0)
            for labels in drawn[-1].unbind(-1)
        ]
    ).mean(0)
    assert torch.allclose(flatten(found), truth, rtol=1e-9, atol=1e-14)
    assert torch.allclose(asked[-1], (model(x) / temperature).softmax(1))


@pytest.mark.parametrize("estimator", ["mc_fisher", "exact_ggn"])
def test_a_loss_of_ones_own_is_refused_by_name(estimator: Any) -> None:
    batches = [(torch.randn(4, 3), torch.arange(4) % 3)]
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match=rf"\b{estimator}\b"):
        pai.curvature_diagonal(model, batches, estimator, loss_fn=nn.MSELoss())


@pytest.mark.parametrize("estimator", ["mc_fisher", "exact_ggn"])
def test_logits_that_do_not_fit_the_targets_are_told_with_both_shapes(estimator: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    batches = [(torch.randn(4, 3), torch.zeros(4, 2).long())]
    with pytest.raises(ValueError, match=r"\[2, C, 2\] are needed, got \(2, 3\)"):
        pai.curvature_diagonal(model, batches, estimator)
