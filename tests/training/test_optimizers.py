from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pai.training.optimizers import AdamW, OptimizerBuilder, Sgd

STEPS = 6


def gradient(w: Tensor) -> Tensor:
    return 4 * (w - torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)) ** 3 + w


def trajectory(builder: OptimizerBuilder) -> Tensor:
    w = nn.Parameter(torch.tensor([0.3, 0.1, -0.7], dtype=torch.float64))
    optimizer = builder([w])
    for _ in range(STEPS):
        w.grad = gradient(w.detach())
        optimizer.step()
    return w.detach()


def sgd_by_hand(lr: float, momentum: float, decay: float, nesterov: bool) -> Tensor:
    w = torch.tensor([0.3, 0.1, -0.7], dtype=torch.float64)
    velocity = torch.zeros_like(w)
    for _ in range(STEPS):
        g = gradient(w) + decay * w
        velocity = momentum * velocity + g
        w = w - lr * (g + momentum * velocity if nesterov else velocity)
    return w


def adamw_by_hand(lr: float, decay: float, beta1: float, beta2: float) -> Tensor:
    w = torch.tensor([0.3, 0.1, -0.7], dtype=torch.float64)
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = gradient(w)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        w = w - lr * decay * w
        w = w - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + 1e-8)
    return w


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)]
)
def test_sgd_follows_its_formula(decay: float, momentum: float, nesterov: bool) -> None:
    steps = trajectory(Sgd(0.02, momentum, decay, nesterov))
    torch.testing.assert_close(steps, sgd_by_hand(0.02, momentum, decay, nesterov))


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.5, 0.8)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_follows_its_formula(decay: float, beta1: float, beta2: float) -> None:
    steps = trajectory(AdamW(0.02, decay, beta1, beta2))
    torch.testing.assert_close(steps, adamw_by_hand(0.02, decay, beta1, beta2))


@pytest.mark.parametrize("family", [Sgd, AdamW])
def test_norms_and_biases_decay_unless_asked_not_to(
    family: Callable[..., OptimizerBuilder],
) -> None:
    for decay_all in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))
        for parameter in model.parameters():
            nn.init.constant_(parameter, 2.0)
            parameter.grad = torch.zeros_like(parameter)
        options = {"weight_decay": 0.5, "decay_norms_and_biases": decay_all}
        optimizer = family(0.1, **options)(model.parameters())
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
            id(p) for p in model.parameters()
        }
        optimizer.step()
        for name, parameter in model.named_parameters():
            decays = decay_all or name in ("0.weight", "2.weight")
            assert torch.all(parameter == (2.0 * (1 - 0.1 * 0.5) if decays else 2.0)), name


@pytest.mark.parametrize("family", [Sgd, AdamW])
@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan")])
def test_a_learning_rate_that_is_not_positive_is_refused(
    family: Callable[..., OptimizerBuilder], lr: float
) -> None:
    with pytest.raises(ValueError, match="lr must be positive"):
        family(lr)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="nesterov"):
        Sgd(0.1, momentum=0.0, nesterov=True)


@pytest.mark.parametrize(
    ("family", "option", "value"),
    [
        (Sgd, "momentum", -0.1), (Sgd, "weight_decay", -1e-4),
        (AdamW, "weight_decay", -0.1), (AdamW, "beta1", 1.0), (AdamW, "beta1", -0.1),
        (AdamW, "beta2", 1.0), (AdamW, "beta2", -0.1),
    ],
)  # fmt: skip
def test_what_torch_would_refuse_is_refused_before_there_are_parameters(
    family: Callable[..., OptimizerBuilder], option: str, value: float
) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=option):
        family(0.1, **options)
