"""Networks that act on a change of mode, or are compiled: scored as written, left as they were."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pai

SCORERS = ["snip", "fd", "gts", "hts", "grasp", "synflow", "prospr", "ntk_sap"]
BATCHES = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3)]


class Merging(nn.Linear):
    """A low-rank addition that is part of the weight in eval mode, as LoRA layers have it."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4))
        self.merged = False

    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if self.merged == mode:
            sign = -1 if mode else 1
            self.weight.data += sign * self.up.data @ self.down.data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        return out if self.merged else out + x @ self.down.T @ self.up.T


class Caching(nn.Linear):
    """Looks its scales up once in eval mode, as timm's LeViT does with attention's biases."""

    def __init__(self, *, caches: bool = True) -> None:
        super().__init__(4, 4)
        self.scales = nn.Linear(4, 4, bias=False)
        self.cache: dict[str, Tensor] = {}
        self.caches = caches

    def train(self, mode: bool = True) -> "Caching":
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.caches:
            return super().forward(x) * self.scales.weight.sum(1)
        if "all" not in self.cache:
            self.cache["all"] = self.scales.weight.sum(1)
        return super().forward(x) * self.cache["all"]


def network(layer: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 3))


def scores(model: nn.Module, name: str, **options: Any) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(3)
    return pai.load_scorer(name, **options)(model, BATCHES, generator=stream)


@pytest.mark.filterwarnings("ignore:no fast per-sample rule")
@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("training", [True, False])
def test_merged_weights_are_taken_apart_again(name: str, training: bool) -> None:
    model = network(Merging())
    model.train(training)
    layer = model[2]  # type: ignore[index]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores(model, name)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert (layer.merged, layer.training) == (not training, training)
    F.cross_entropy(model.train()(BATCHES[0][0]), BATCHES[0][1]).backward()
    assert layer.up.grad.any()


@pytest.mark.filterwarnings("ignore:no fast per-sample rule")
@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("filled", [True, False])
def test_what_a_pass_keeps_is_not_in_the_next(name: str, filled: bool) -> None:
    layer = Caching()
    model = network(layer).eval()
    plain = copy.deepcopy(model)
    plain[2].caches = False  # type: ignore[index]
    if filled:
        model(BATCHES[0][0])
    kept, inside = layer.cache, dict(layer.cache)
    options = {"inner_lr": 1.0} if name == "prospr" else {}
    expected = scores(plain, name, **options)
    for key, value in scores(model, name, **options).items():
        assert torch.equal(value, expected[key])
    assert layer.cache is kept
    assert layer.cache == inside
    assert not model.training
    assert torch.equal(model(BATCHES[0][0]), plain(BATCHES[0][0]))


def test_modules_are_as_they_were_when_scoring_fails() -> None:
    model = network(Merging())
    layer = model[2]  # type: ignore[index]
    layer.notes = ["mine"]
    before = layer.weight.detach().clone()
    with pytest.raises(IndexError):
        pai.load_scorer("snip")(model, [(BATCHES[0][0], torch.full((8,), 7))])
    assert torch.equal(layer.weight, before)
    assert not layer.merged
    assert layer.notes == ["mine"]
    assert not model._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["snip", "fd", "grasp", "hd", "prospr"])
def test_a_compiled_network_is_scored_as_it_was_written(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    batches = [(torch.randn(6, 2, 6, 6).double(), torch.arange(6) % 3)]

    def found(network: Any) -> list[Tensor]:
        stream = torch.Generator().manual_seed(0)
        return list(pai.load_scorer(name)(network, batches, generator=stream).values())

    expected = found(model)
    compiled = torch.compile(model, backend="eager")
    compiled(batches[0][0])
    for value, truth in zip(found(compiled), expected, strict=True):
        assert torch.equal(value, truth)


class Noting(nn.Linear):
    """Notes each change of mode in containers of its own."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.modes: list[bool] = []
        self.counts: dict[bool, int] = {}

    def train(self, mode: bool = True) -> "Noting":
        self.modes.append(mode)
        self.counts[mode] = self.counts.get(mode, 0) + 1
        return super().train(mode)


def test_containers_are_the_same_ones_with_what_was_in_them() -> None:
    layer = Noting()
    model = nn.Sequential(layer, nn.Linear(3, 2)).train()
    containers = layer.modes, layer.counts
    pai.load_scorer("snip")(model, [(torch.randn(4, 4), torch.arange(4) % 2)])
    assert (layer.modes, layer.counts) == ([True], {True: 1})
    assert layer.modes is containers[0] and layer.counts is containers[1]
