import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pai.training.evaluate import evaluate


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 40), batch_size=st.integers(1, 15), classes=st.integers(2, 6),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_every_sample_counts_the_same_whatever_the_batches(
    count: int, batch_size: int, classes: int, seed: int
) -> None:
    stream = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=stream) * 3
    targets = torch.randint(0, classes, (count,), generator=stream)
    batches = list(zip(logits.split(batch_size), targets.split(batch_size)))
    result = evaluate(nn.Identity(), batches)
    rows = logits.double().tolist()
    losses = [
        math.log(sum(math.exp(value) for value in row)) - row[target]
        for row, target in zip(rows, targets.tolist())
    ]
    hits = [max(row) == row[target] for row, target in zip(rows, targets.tolist())]
    assert result.loss == pytest.approx(sum(losses) / count, rel=1e-5, abs=1e-6)
    assert result.accuracy == sum(hits) / count


def test_a_short_last_batch_weighs_by_its_samples() -> None:
    right, wrong = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    batches = [(right.expand(9, 2), torch.zeros(9).long()), (wrong, torch.zeros(1).long())]
    result = evaluate(nn.Identity(), batches)
    assert result.accuracy == 0.9
    small = math.log1p(math.exp(-9))
    assert result.loss == pytest.approx((9 * small + 9 + small) / 10, rel=1e-5)


def test_the_model_runs_in_eval_mode_and_learns_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.9), nn.Linear(8, 2))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(5, 3), torch.zeros(5).long())]
    assert evaluate(model, batches) == evaluate(model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model.eval()(batches[0][0]), batches[0][1])
    assert evaluate(model.train(), batches).loss == pytest.approx(float(expected), rel=1e-6)
