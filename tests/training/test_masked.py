import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from pai.training.masked import PrunedWeights

Parameters = Iterable[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "adam with decay in the gradient": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def half_mask(model: nn.Module) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(2)
    return {
        name: torch.rand(parameter.shape, generator=stream) < 0.5
        for name, parameter in model.named_parameters()
        if "weight" in name
    }


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (model(torch.randn(6, 5)) - 1).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_pruned_weights_are_zero_after_every_step_of_an_optimizer_with_momentum(
    build: Callable[[Parameters], torch.optim.Optimizer],
) -> None:
    model = net()
    mask = half_mask(model)
    optimizer = build(model.parameters())
    for _ in range(3):  # momentum of the weights about to be pruned
        step(model, optimizer)
    pruned = PrunedWeights(model, mask)
    start = copy.deepcopy(model.state_dict())
    for _ in range(5):
        step(model, optimizer)
        assert any(bool(model.get_parameter(name)[~keep].any()) for name, keep in mask.items())
        moved = {name: model.get_parameter(name).detach().clone() for name in mask}
        pruned.zero()
        for name, keep in mask.items():
            weight = model.get_parameter(name).detach()
            assert torch.equal(weight[~keep], torch.zeros(int((~keep).sum())))
            assert torch.equal(weight[keep], moved[name][keep])
    for name, keep in mask.items():
        assert bool((model.get_parameter(name) != start[name])[keep].all())


def test_what_is_not_in_the_mask_is_left_alone() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    mask = {
        "0.weight": half_mask(model)["0.weight"],
        "2.weight": torch.ones(3, 8, dtype=torch.bool),
    }
    identities = [id(parameter) for parameter in model.parameters()]
    PrunedWeights(model, mask).zero()
    for name in ("0.bias", "2.weight", "2.bias"):
        assert torch.equal(model.get_parameter(name), before[name])
    assert [id(parameter) for parameter in model.parameters()] == identities
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("mask", [{}, {"0.weight": torch.ones(8, 5, dtype=torch.bool)}])
def test_a_mask_that_keeps_everything_changes_no_bit(mask: dict[str, Tensor]) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    PrunedWeights(model, mask).zero()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_can_lose_every_weight() -> None:
    model = net()
    PrunedWeights(model, {"0.weight": torch.zeros(8, 5, dtype=torch.bool)}).zero()
    assert not model.get_parameter("0.weight").any()
    assert bool(model.get_parameter("2.weight").all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_number_formats_keep_their_kept_weights(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    weight = model.get_parameter("0.weight")
    before = weight.detach().clone()
    keep = half_mask(model)["0.weight"]
    PrunedWeights(model, {"0.weight": keep}).zero()
    assert weight.dtype == dtype
    assert torch.equal(weight, torch.where(keep, before, torch.zeros_like(before)))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError):
        PrunedWeights(net(), {"9.weight": torch.zeros(2, dtype=torch.bool)})
