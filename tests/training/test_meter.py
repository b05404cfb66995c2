import pytest
import torch
from torch import Tensor

from pai.errors import RunError
from pai.training.meter import CHECK_EVERY, Meter

ONE = torch.tensor(1.0)


def test_means_weigh_every_sample_the_same_over_many_fetches() -> None:
    meter, losses, sizes = Meter(0), torch.rand(2 * CHECK_EVERY + 7), []
    hits = 0
    for number, loss in enumerate(losses):
        size = 1 + number % 5
        sizes.append(size)
        hits += size // 2
        meter.add(loss, torch.tensor(size // 2), size)
    mean, accuracy = meter.means()
    weights = torch.tensor(sizes, dtype=torch.float64)
    assert mean == pytest.approx(float((losses.double() * weights).sum() / weights.sum()))
    assert accuracy == hits / sum(sizes)
    assert meter.predictions == sum(sizes)
    assert meter.means() == (mean, accuracy)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [1, 2, CHECK_EVERY, CHECK_EVERY + 3])
def test_a_loss_that_is_not_finite_is_named_before_long(bad: float, step: int) -> None:
    meter, added = Meter(2), 0
    with pytest.raises(RunError, match=rf"training loss became .* in epoch 3, step {step};"):
        while True:
            added += 1
            meter.add(ONE * bad if added >= step else ONE, ONE, 1)
    assert added - step < CHECK_EVERY


def test_a_bad_loss_at_the_end_is_found_too() -> None:
    meter = Meter(0)
    meter.add(ONE * float("nan"), ONE, 1)
    with pytest.raises(RunError, match="epoch 1, step 1;"):
        meter.means()


def test_the_device_is_waited_for_only_at_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    real = Tensor.cpu

    def cpu(self: Tensor) -> Tensor:
        fetched.append(len(self))
        return real(self)

    for name in ("item", "__float__", "__int__", "__bool__", "to", "numpy"):
        monkeypatch.setattr(Tensor, name, lambda self: pytest.fail("waited"))
    monkeypatch.setattr(Tensor, "cpu", cpu)
    meter = Meter(0)
    for _ in range(2 * CHECK_EVERY + 1):
        meter.add(ONE, ONE, 4)
    assert fetched == [CHECK_EVERY] * 4  # losses and predictions, twice
