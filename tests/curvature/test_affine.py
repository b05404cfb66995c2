from typing import Any

import pytest
import torch
from cases import CASES, Case, case_named
from torch import nn

import pai
from pai.curvature import curved_parameters

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_curved_parameters_are_those_whose_hessian_block_differs_from_gauss_newton(
    case: Case,
) -> None:
    model, x, y = case.problem()
    parameters = pai.prunable_parameters(model, include_classifier=True)
    curved = curved_parameters(model, [(x, y)], parameters)
    if case.piecewise_linear:
        assert curved == []
    elif case.name != "standardised":  # affine in its weights, though these are transformed
        assert curved


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(nn.ReLU(), []), (nn.GELU(), ["0.weight"]), (nn.Tanh(), ["0.weight"])],
)
def test_only_tensors_before_a_smooth_activation_are_curved(
    activation: nn.Module, expected: list[str]
) -> None:
    torch.manual_seed(0)  # with other weights all units after the activation may be dead
    model = nn.Sequential(
        nn.Linear(3, 4), activation, nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2)
    )
    parameters = pai.prunable_parameters(model, include_classifier=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert curved_parameters(model.train(), [(torch.randn(4, 3), torch.zeros(4))], parameters) == (
        expected
    )
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_used_twice_is_curved_and_no_batches_are_an_error() -> None:
    model, x, y = case_named("shared").problem()
    assert "layer.weight" in curved_parameters(model, [(x, y)], pai.prunable_parameters(model))
    with pytest.raises(ValueError, match=r"^batches is empty"):
        curved_parameters(model, [], pai.prunable_parameters(model))


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(3, 2, bias=False)
        self.deep = nn.Sequential(
            nn.Linear(3, 4, bias=False), nn.GELU(), nn.Linear(4, 4, bias=False), nn.GELU(),
            nn.Linear(4, 2, bias=False),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deep: torch.Tensor = self.deep(x)
        return deep + self.plain(x)


def test_all_tensors_are_looked_at_and_the_directions_are_always_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Shortcut()
    parameters = dict(model.named_parameters())  # the first one's gradient is constant
    batches = [(torch.rand(2, 3), torch.zeros(2))]
    drawn: list[torch.Tensor] = []
    original = torch.randn

    def recorded(*arguments: Any, **options: Any) -> torch.Tensor:
        drawn.append(original(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn", recorded)
    before = torch.get_rng_state()
    for _ in range(2):
        assert curved_parameters(model, batches, parameters) == ["deep.0.weight", "deep.2.weight"]
    assert torch.equal(torch.get_rng_state(), before)
    first, second = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
