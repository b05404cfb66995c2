import pytest
import torch
from cases import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

import pai
from pai.curvature.ggn import cholesky_columns

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
