import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pai.training.lr_schedules import Constant, Cosine, LRSchedule, Steps

quick = settings(max_examples=50, deadline=None)


def torch_factors(
    epochs: int, scheduler: type[torch.optim.lr_scheduler.LRScheduler], **options: Any
) -> list[float]:
    """The learning rate of each epoch under torch's own scheduler, for a base rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = scheduler(optimizer, **options)
    factors = []
    for _ in range(epochs):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return factors


@quick
@given(epoch=st.floats(0, 500), epochs=st.integers(0, 500))
def test_constant_is_one(epoch: float, epochs: int) -> None:
    assert Constant().factor(epoch, epochs) == 1.0


@pytest.mark.parametrize("epochs", [1, 2, 15, 160])
def test_cosine_is_torchs_cosine_annealing(epochs: int) -> None:
    expected = torch_factors(epochs, torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    for epoch, factor in enumerate(expected):
        assert Cosine().factor(epoch, epochs) == pytest.approx(factor, abs=1e-9)
    assert Cosine().factor(epochs, epochs) == pytest.approx(0.0, abs=1e-12)
    assert Cosine().factor(epochs / 2, epochs) == pytest.approx(0.5)


@quick
@given(warmup=st.floats(0.1, 20), epochs=st.integers(1, 40), share=st.floats(0, 1))
def test_warmup_rises_in_a_line_and_the_cosine_starts_after_it(
    warmup: float, epochs: int, share: float
) -> None:
    schedule = Cosine(warmup_epochs=warmup)
    if share * warmup < warmup:
        assert schedule.factor(share * warmup, epochs) == pytest.approx(share)
    assert schedule.factor(warmup, epochs) == pytest.approx(1.0)
    if warmup < epochs - 0.01:
        epoch = warmup + share * (epochs - warmup)
        assert schedule.factor(epoch, epochs) == pytest.approx(
            math.cos(math.pi * share / 2) ** 2, abs=1e-6
        )


@quick
@given(
    warmup=st.floats(0, 20), epochs=st.integers(1, 40),
    first=st.floats(0, 1), second=st.floats(0, 1),
)  # fmt: skip
def test_the_cosine_factor_stays_between_0_and_1_and_falls_after_the_warmup(
    warmup: float, epochs: int, first: float, second: float
) -> None:
    schedule = Cosine(warmup_epochs=warmup)
    early, late = sorted((first * epochs, second * epochs))
    for epoch in (early, late):
        assert 0 <= schedule.factor(epoch, epochs) <= 1
    if early >= warmup:
        assert schedule.factor(early, epochs) >= schedule.factor(late, epochs)


@pytest.mark.parametrize("milestones", [[], [60, 120], [1, 2, 3], [120, 60], [5, 5]])
def test_steps_is_torchs_multi_step_schedule(milestones: list[int]) -> None:
    expected = torch_factors(
        160, torch.optim.lr_scheduler.MultiStepLR, milestones=milestones, gamma=0.2
    )
    schedule = Steps(milestones, 0.2)
    for epoch, factor in enumerate(expected):
        assert schedule.factor(epoch, 160) == pytest.approx(factor, rel=1e-9)
        assert schedule.factor(epoch + 0.999, 160) == pytest.approx(factor, rel=1e-9)


@quick
@given(warmup=st.floats(0.1, 20), epoch=st.floats(0, 40))
def test_the_warmup_of_steps_is_a_line_to_the_rate_without_it(warmup: float, epoch: float) -> None:
    plain, warmed = Steps([4, 9], 0.5), Steps([4, 9], 0.5, warmup_epochs=warmup)
    share = min(1.0, epoch / warmup)
    assert warmed.factor(epoch, 40) == pytest.approx(share * plain.factor(epoch, 40))


@pytest.mark.parametrize("warmup", [-1, float("nan")])
def test_a_negative_warmup_is_refused(warmup: float) -> None:
    for build in (Cosine, functools.partial(Steps, [1], 0.1)):
        with pytest.raises(ValueError, match="warmup_epochs"):
            build(warmup_epochs=warmup)


@pytest.mark.parametrize("milestones", [[0], [-3, 60]])
def test_a_milestone_before_the_first_epoch_is_refused(milestones: list[int]) -> None:
    with pytest.raises(ValueError, match="milestones"):
        Steps(milestones)


@pytest.mark.parametrize("factor", [0.0, -0.1, 1.5, float("nan")])
def test_a_factor_that_is_no_decrease_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="factor_per_step"):
        Steps([1], factor)


def test_every_schedule_fits_the_protocol() -> None:
    schedules: list[LRSchedule] = [Constant(), Cosine(), Steps([1])]
    assert all(0 <= schedule.factor(0.5, 1) <= 1 for schedule in schedules)
