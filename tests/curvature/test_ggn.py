import pytest
import torch
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pai
from pai.curvature.ggn import ExactGGN, cholesky_columns

logits = st.lists(st.floats(-800, 800), min_size=2, max_size=8)


@settings(deadline=None)
@given(row=logits)
def test_columns_are_a_factor_of_the_covariance_of_the_classes(row: list[float]) -> None:
    """Also where probabilities underflow to zero."""
    p = torch.tensor([row], dtype=torch.float64).softmax(1)
    columns = torch.stack([column[0] for column in cholesky_columns(p)], dim=1)
    assert columns.shape == (len(row), len(row) - 1)
    covariance = torch.diag(p[0]) - torch.outer(p[0], p[0])
    torch.testing.assert_close(columns @ columns.T, covariance, rtol=1e-12, atol=1e-15)


def test_relative_accuracy_for_nearly_certain_classes() -> None:
    """``p_c (1 - p_c)`` loses all digits in float32 by subtraction; the factor keeps them."""
    certain = torch.tensor([[40.0, 0.0, -3.0]]).float().softmax(1)
    truth = torch.tensor([[40.0, 0.0, -3.0]]).double().softmax(1)
    columns = torch.stack([c[0] for c in cholesky_columns(certain)], dim=1).double()
    diagonal = columns.square().sum(1)
    exact = truth[0] * (truth[0].sum() - truth[0])
    exact[0] = truth[0, 0] * (truth[0, 1] + truth[0, 2])
    torch.testing.assert_close(diagonal, exact, rtol=1e-5, atol=0)


def test_many_classes_are_refused_with_a_way_out_and_can_be_forced() -> None:
    model, x, y = CASES[0].problem()
    with pytest.raises(ValueError, match=r"per class, and there are 3; mc_fisher"):
        pai.curvature_diagonal(model, [(x, y)], estimator="exact_ggn", max_classes=2)
    pai.curvature_diagonal(model, [(x, y)], estimator="exact_ggn", max_classes=3)
    with pytest.raises(ValueError, match="max_classes must be at least 2"):
        pai.load_scorer("gp", max_classes=1)


@pytest.mark.parametrize(
    ("shape", "most", "message"),
    [
        ((2, 10), 10, None), ((2, 11), 10, r"per class, and there are 11;"),
        ((2, 5, 2), 10, None), ((2, 5, 3), 10, r"per class and position, and there are 5 x 3;"),
        ((2, 6, 2), 10, r"per class and position, and there are 6 x 2;"),
        ((2, 2, 2, 3), 11, r"per class and position, and there are 2 x 6;"),
    ],
)  # fmt: skip
def test_the_limit_counts_backward_passes(
    shape: tuple[int, ...], most: int, message: str | None
) -> None:
    estimator = ExactGGN(max_classes=most)
    if message is None:
        estimator.check_outputs(shape)
        return
    with pytest.raises(ValueError, match=message):
        estimator.check_outputs(shape)


def test_another_loss_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    batches = [(torch.randn(2, 3), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match=r"^exact_ggn assumes cross-entropy"):
        pai.curvature_diagonal(model, batches, "exact_ggn", loss_fn=nn.MSELoss())
