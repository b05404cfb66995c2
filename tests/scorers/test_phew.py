"""PHEW: what is drawn, what is found, in which order, and for which networks."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from cases import CASES
from reference import flatten
from torch import Tensor, nn

import pai
from pai.errors import ConfigError
from pai.masking.effective import effective_kept
from pai.models.resnet import thin_resnet
from pai.scorers.phew import Choice, units_of
from pai.scorers.unit_graph import trace

CASE = {case.name: case for case in CASES}


class Branches(nn.Module):
    """Concatenation, grouped convolution, an average that keeps its axis, flattened maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(2, 2, 1)
        self.c = nn.Conv2d(6, 4, 3, groups=2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([torch.relu(self.a(x)), self.b(x)], dim=1)
        return self.head(torch.flatten(self.c(both), 1))


def test_a_unit_draws_its_weights_in_proportion_to_their_size() -> None:
    size = torch.tensor([1.0, 0, 3, 2, 2, 0], dtype=torch.float64)
    at, to = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([5, 6, 7, 8, 9, 0])
    choice = Choice(size, at, to)
    draws = torch.arange(1000, dtype=torch.float64) / 1000
    taken, there = choice(torch.zeros(1000, dtype=torch.long), draws)
    assert torch.bincount(taken, minlength=3).tolist() == [250, 0, 750]
    assert torch.equal(there, to[taken])
    taken, _ = choice(torch.ones(1000, dtype=torch.long), draws)
    assert torch.bincount(taken).tolist()[3:] == [500, 500]
    assert choice.total.tolist() == [4, 4, 0]


@pytest.mark.parametrize("groups", [1, 2])
def test_each_weight_joins_the_units_that_the_convolution_joins(groups: int) -> None:
    layer = nn.Conv2d(4, 6, 3, groups=groups, bias=False)
    source, target = units_of(layer.weight.shape, groups)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        for unit in range(4):
            x = torch.zeros(1, 4, 3, 3)
            x[0, unit] = 1
            reached = set(torch.nonzero(layer(x).flatten()).flatten().tolist())
            assert reached == set(target[source == unit].tolist())


@pytest.mark.parametrize(
    "case", ["resnet", "residual", "branches", "conv_groups", "conv1d", "mlp_relu", "channels_last"]
)
def test_whole_walks_are_paths_from_the_input_to_the_output(case: str) -> None:
    torch.manual_seed(0)
    if case == "resnet":
        model: nn.Module = thin_resnet(num_classes=4, in_channels=2, depth=8, width=4)
        x = torch.randn(1, 2, 32, 32)  # no walk's kernel positions lead over the edge of the maps
    elif case == "branches":
        model, x = Branches(), torch.randn(1, 2, 4, 4)
    else:
        model, x, _ = CASE[case].problem()
    parameters = pai.prunable_parameters(model, include_classifier=True)
    stream = torch.Generator().manual_seed(3)
    scores = pai.load_scorer("phew")(
        model, [(x, torch.tensor([0]))], generator=stream, parameters=parameters
    )
    for walks in (1, 2, 5, 30):
        mask = {name: value > -walks for name, value in scores.items()}
        assert sum(int(keep.sum()) for keep in mask.values()) > 0
        effective = effective_kept(model, mask, x)
        assert effective is not None
        assert all(torch.equal(effective[name], keep) for name, keep in mask.items())


def test_walks_start_at_the_units_in_turn_and_go_both_ways() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 2))
    scores = pai.load_scorer("phew")(
        model, [(torch.zeros(1, 3), torch.tensor([0]))],
        parameters=pai.prunable_parameters(model, include_classifier=True),
    )  # fmt: skip
    first, last = scores["0.weight"], scores["2.weight"]
    for walk in range(4):
        into, out = (torch.nonzero((s <= -walk) & (s > -walk - 1)) for s in (first, last))
        assert len(into) <= 1
        assert len(out) <= 1
        if walk % 2 == 0 and len(into):
            assert into[0, 1] == walk // 2 % 3
        if walk % 2 == 1 and len(out):
            assert out[0, 0] == walk // 2 % 2
        if len(into) and len(out):
            assert into[0, 0] == out[0, 1]  # the same hidden unit
            earlier = first[tuple(into[0])] > last[tuple(out[0])]
            assert bool(earlier) is (walk % 2 == 0)


def test_walks_end_at_the_coverage_and_the_rest_follows_by_magnitude() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 300), nn.ReLU(), nn.Linear(300, 30), nn.Linear(30, 2))
    batches = [(torch.zeros(1, 30), torch.tensor([0]))]
    w = flatten(pai.prunable_parameters(model)).detach().abs()
    orders = []
    for coverage in (0.1, 0.8):
        stream = torch.Generator().manual_seed(0)
        scores = flatten(
            pai.load_scorer("phew", coverage=coverage)(model, batches, generator=stream)
        )
        order = scores.argsort(descending=True)
        falling = w[order].diff() <= 0
        walked = int(torch.nonzero(~falling).max()) + 1  # the last that |w| does not put here
        assert coverage <= walked / len(w) < coverage + 0.3  # walks come in blocks
        orders.append(order)
    share = int(0.1 * len(w))
    assert torch.equal(orders[0][:share], orders[1][:share])  # the first walks are the same


def test_a_shortcut_without_weights_is_not_taken_beside_a_branch_with_some() -> None:
    model = thin_resnet(num_classes=4, in_channels=2, depth=8, width=4)
    stream = torch.Generator().manual_seed(3)
    scores = pai.load_scorer("phew")(
        model, [(torch.zeros(1, 2, 8, 8), torch.tensor([0]))], generator=stream
    )
    first = {name: int((value > -1).sum()) for name, value in scores.items()}
    assert first["conv1.weight"] == 1
    assert first["stages.0.0.conv1.weight"] == first["stages.0.0.conv2.weight"] == 1
    for stage in (1, 2):  # a projection and the main path are equally good
        main = first[f"stages.{stage}.0.conv1.weight"]
        assert main == first[f"stages.{stage}.0.conv2.weight"]
        assert main + first[f"stages.{stage}.0.shortcut.0.weight"] == 1


def test_pruned_weights_are_never_walked() -> None:
    model, x, y = CASE["mlp_relu"].problem()
    keep = {name: p > 0 for name, p in pai.prunable_parameters(model).items()}
    pai.apply_mask(model, keep)
    scores = pai.load_scorer("phew")(model, [(x, y)], generator=torch.Generator().manual_seed(0))
    worst = min(float(scores[name][k].min()) for name, k in keep.items())
    assert all(float(scores[name][~k].max()) <= worst for name, k in keep.items())


@pytest.mark.parametrize(("name", "operation"), [("attention", "linear"), ("standardised", "conv")])
def test_networks_without_walks_are_refused(name: str, operation: str) -> None:
    model, x, y = CASE[name].problem()
    with pytest.raises(ConfigError, match=f"not defined for this network; {operation}"):
        pai.load_scorer("phew")(model, [(x, y)])


class Block(nn.Module):
    """One layer inside whatever ``around`` opens, twice."""

    def __init__(self, around: Callable[[], Any], *, decides: bool = False) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.around, self.decides = around, decides

    def forward(self, x: Tensor) -> Tensor:
        while self.decides and x.sum() > 0:
            x = x - 1
        with self.around():
            x = self.layer(torch.relu(self.layer(x)))
        return self.head(x.float())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Block(torch.no_grad), r"\(wrap_with_set_grad_enabled\) neither maps"),
        (Block(lambda: torch.autocast("cpu")), r"\(wrap_with_autocast\) neither maps"),
        (Block(nullcontext, decides=True), "torch.export can trace; here it says: Could not guard"),
    ],
)
def test_blocks_and_decisions_in_the_forward_pass_are_refused(model: nn.Module, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pai.load_scorer("phew")(model, [(torch.zeros(1, 4), torch.zeros(1))])


def test_operations_with_several_results_are_refused() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat(self.layer(x).chunk(2, 1), 1))

    with pytest.raises(ConfigError, match=r"chunk \(aten.chunk.default\) neither maps"):
        pai.load_scorer("phew")(Halves(), [(torch.zeros(1, 4), torch.zeros(1))])


def test_a_weight_that_two_layers_share_is_walked_in_both() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4, bias=False) for _ in range(2)]
    layers[1].weight = layers[0].weight
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():  # only 0 -> 1 from the input, only 1 -> 2 from there on
        layers[0].weight.zero_()
        layers[0].weight[1, 0] = layers[0].weight[2, 1] = 1
    steps = trace(model, torch.zeros(1, 4))
    assert [step.weight for step in steps if step.kind == "weighted"] == [
        "0.weight", "0.weight", "4.weight",
    ]  # fmt: skip
    scores = pai.load_scorer("phew")(model, [(torch.zeros(1, 4), torch.zeros(1))])["0.weight"]
    walked = torch.nonzero(scores > -1)  # the first walk, from unit 0
    assert walked.tolist() == [[1, 0], [2, 1]]


def test_a_traced_network_begins_with_the_input_and_ends_with_the_logits() -> None:
    model, x, _ = CASE["non_contiguous"].problem()
    with pytest.raises(ValueError, match="slice"):
        trace(model, x)
    model, x, _ = CASE["residual"].problem()
    steps = trace(model, x)
    assert (steps[0].kind, steps[0].units) == ("input", 2)
    assert (steps[-1].kind, steps[-1].units, steps[-1].weight) == ("weighted", 3, "head.weight")
    assert [step.kind for step in steps].count("merge") == 1
