import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pai
from pai.masking.schedule import Exponential, Linear, OneShot, Schedule, iterate
from pai.models.resnet import thin_resnet

rounds = st.integers(1, 200)
targets = st.floats(0, 0.9999)


@given(rounds=rounds, target=targets)
def test_exponential_schedule_has_constant_ratio_of_densities(rounds: int, target: float) -> None:
    densities = [1 - s for s in Exponential(rounds).sparsities(target)]
    assert len(densities) == rounds and densities[-1] == 1 - target
    for k, density in enumerate(densities, start=1):
        assert density == pytest.approx((1 - target) ** (k / rounds), rel=1e-9)


def test_exponential_first_round_at_ninety_percent_keeps_nearly_everything() -> None:
    """The public code of the paper removes 99.9 % here: it takes sparsity for density."""
    assert Exponential(100).sparsities(0.9)[0] == pytest.approx(1 - 0.1**0.01)
    assert Exponential(100).sparsities(0.9)[0] < 0.03


@given(rounds=rounds, target=targets)
def test_linear_schedule_has_equal_steps(rounds: int, target: float) -> None:
    steps = [0.0, *Linear(rounds).sparsities(target)]
    assert len(steps) == rounds + 1 and steps[-1] == target
    for a, b in itertools.pairwise(steps):
        assert b - a == pytest.approx(target / rounds, abs=1e-12)


def test_one_shot_has_one_round() -> None:
    assert OneShot().sparsities(0.7) == [0.7]


@pytest.mark.parametrize("schedule", [Exponential, Linear])
def test_no_rounds_are_refused(schedule: Any) -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        schedule(0)


@pytest.mark.parametrize("schedule", [OneShot(), Exponential(5), Linear(4)])
def test_each_round_scores_the_network_pruned_so_far(schedule: Schedule) -> None:
    seen: list[Mapping[str, Tensor] | None] = []

    def score(mask: Any) -> dict[str, Tensor]:
        seen.append(mask)
        return {"a": torch.arange(100.0)}

    mask = iterate(score, schedule, 0.9, "global")
    kept = [100 if m is None else int(m["a"].sum()) for m in seen]
    wanted = [100, *(round((1 - s) * 100) for s in schedule.sparsities(0.9))]
    assert kept == wanted[:-1]
    assert mask["a"].tolist() == [False] * 90 + [True] * 10


def test_find_mask_shows_each_round_zeroed_weights_and_leaves_the_model_alone() -> None:
    model = thin_resnet(num_classes=3, in_channels=1, depth=8, width=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    zeros = []

    def scorer(model: nn.Module, batches: Any, **options: Any) -> dict[str, Tensor]:
        zeros.append(sum(int((p == 0).sum()) for p in options["parameters"].values()))
        return {name: p.detach().abs() for name, p in options["parameters"].items()}

    batches = [(torch.zeros(1, 1, 8, 8), torch.tensor([0]))]
    mask = pai.find_mask(model, batches, scorer, sparsity=0.5, schedule=Linear(2))
    total = sum(m.numel() for m in mask.values())
    assert zeros == [0, total - round(0.75 * total)]
    assert sum(int(m.sum()) for m in mask.values()) == round(0.5 * total)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("revive", [False, True])
@pytest.mark.parametrize(("scope", "target"), [("global", 0.9), ("layer", 0.9), ("1:4", 0.75)])
def test_rounds_within_a_mask_begin_where_something_is_left_to_remove(
    scope: str, target: float, revive: bool
) -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 4), nn.Linear(4, 2))  # rows of 5 stay dense
    parameters = pai.prunable_parameters(model)
    weights = {name: p.detach().abs() for name, p in parameters.items()}
    within = pai.select(weights, 0.5, "2:4") if scope == "1:4" else pai.select(weights, 0.8, scope)
    seen: list[int] = []

    def scorer(model: nn.Module, batches: Any, **options: Any) -> dict[str, Tensor]:
        seen.append(sum(int((p != 0).sum()) for p in options["parameters"].values()))
        return {name: p.detach().abs() for name, p in options["parameters"].items()}

    mask = pai.find_mask(
        model, [], scorer, sparsity=target, within=within, scope=scope,
        schedule=Exponential(10, revive=revive),
    )  # fmt: skip
    assert all(bool((mask[name] <= keep).all()) for name, keep in within.items())
    assert 1 < len(seen) < 10
    assert seen[0] == sum(int(keep.sum()) for keep in within.values())
    assert sum(int(keep.sum()) for keep in mask.values()) == (30 if scope == "1:4" else 6)
    with pytest.raises(ValueError, match=r"within keeps|use sparsity=0\.75"):
        pai.find_mask(model, [], scorer, sparsity=0.3, within=within, scope=scope)


def test_rounds_within_a_mask_are_those_that_keep_fewer_than_it() -> None:
    model = nn.Sequential(nn.Linear(8, 5, bias=False), nn.Linear(5, 2))
    weight = model.get_parameter("0.weight").detach().abs()
    within = pai.select({"0.weight": weight}, 0.25)  # as the first round
    seen: list[int] = []

    def scorer(model: nn.Module, batches: Any, **options: Any) -> dict[str, Tensor]:
        (weight,) = options["parameters"].values()
        seen.append(int((weight != 0).sum()))
        return {"0.weight": weight.detach().abs()}

    pai.find_mask(model, [], scorer, sparsity=0.75, within=within, schedule=Linear(3))
    assert seen == [30, 20]


def test_a_mask_of_another_network_is_refused_before_scoring() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"within: '0\.weight' has shape \(4,\)"):
        pai.find_mask(
            model, [], lambda *_, **__: {}, sparsity=0.5,
            within={"0.weight": torch.ones(4, dtype=torch.bool)},
        )  # fmt: skip


def test_iterated_synflow_never_removes_a_whole_layer_before_it_must() -> None:
    """Theorem 3 of Tanaka et al. 2020: at maximal compression every layer keeps a weight."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 5), nn.ReLU(), nn.Linear(5, 100), nn.ReLU(),
        nn.Linear(100, 3),
    )  # fmt: skip
    batches = [(torch.zeros(1, 20), torch.tensor([0]))]
    synflow = pai.load_scorer("synflow")
    arguments: dict[str, Any] = {"sparsity": 0.997, "include_classifier": True}
    mask = pai.find_mask(model, batches, synflow, schedule=Exponential(100), **arguments)
    assert all(bool(m.any()) for m in mask.values())
    magnitude = pai.load_scorer("magnitude")
    assert not all(
        bool(m.any()) for m in pai.find_mask(model, batches, magnitude, **arguments).values()
    )


@pytest.mark.parametrize("kind", [Exponential, Linear])
def test_a_weight_returns_only_if_the_schedule_lets_it(kind: Any) -> None:
    rounds = [torch.tensor([0.0, 1, 2, 3]), torch.tensor([9.0, 1, 2, 3])]
    for revive, kept in ((False, [False, False, False, True]), (True, [True, False, False, False])):
        scores = iter([{"a": score} for score in rounds])

        def score(mask: Any, scores: Iterator[dict[str, Tensor]] = scores) -> dict[str, Tensor]:
            return next(scores)

        mask = iterate(score, kind(2, revive=revive), 0.75, "global")
        assert mask["a"].tolist() == kept


def test_scores_are_of_dense_weights_at_the_pruned_network() -> None:
    """The derivative of ``w m x`` by m is ``w x``: a pruned weight of 2 scores 2."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2, 3, 4]]))
    seen = []

    def scorer(model: nn.Module, batches: Any, **options: Any) -> dict[str, Tensor]:
        options["loss_fn"] = lambda outputs, targets: outputs.mean()
        found = pai.load_scorer("snip")(model, batches, **options)
        seen.append((model.get_parameter("weight").tolist(), found["weight"].tolist()))
        return dict(found)

    for revive in (False, True):
        seen.clear()
        pai.find_mask(
            model, [(torch.ones(1, 4), torch.zeros(1))], scorer, sparsity=0.75,
            schedule=Linear(2, revive=revive), include_classifier=True,
        )  # fmt: skip
        assert seen == [([[1, 2, 3, 4]], [[1, 2, 3, 4]]), ([[0, 0, 3, 4]], [[1, 2, 3, 4]])]


def test_each_round_has_its_own_samples_only_if_the_schedule_resamples() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    for resample, wanted in ((True, [0, 1, 2]), (False, [0, 0, 0])):
        asked: list[int] = []
        seen: list[int] = []

        def draw(number: int, asked: list[int] = asked) -> Any:
            asked.append(number)
            return [(torch.full((1, 2), float(number)), torch.tensor([0]))]

        def scorer(
            model: nn.Module, batches: Any, seen: list[int] = seen, **options: Any
        ) -> dict[str, Tensor]:
            seen.append(int(next(iter(batches))[0][0, 0]))
            return {name: p.detach().abs() for name, p in options["parameters"].items()}

        schedule = Exponential(3, resample=resample)
        pai.find_mask(model, draw, scorer, sparsity=0.5, schedule=schedule)
        assert asked == seen == wanted


def test_a_schedule_that_resamples_needs_to_be_given_samples() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    batches = [(torch.zeros(1, 2), torch.tensor([0]))]
    with pytest.raises(ValueError, match="batches must be a function of the round"):
        pai.find_mask(
            model, batches, pai.load_scorer("magnitude"), sparsity=0.5,
            schedule=pai.load_schedule("force"),
        )  # fmt: skip


def test_default_schedules_are_those_of_the_yaml_files() -> None:
    assert pai.default_schedule("snip") == OneShot()
    assert pai.default_schedule("synflow") == pai.default_schedule("px") == Exponential(100)
    assert pai.default_schedule("iter_snip") == Exponential(60, resample=True)
    assert pai.default_schedule("force") == Exponential(60, revive=True, resample=True)
    assert pai.default_schedule("ntk_sap") == Exponential(20)
    with pytest.raises(ValueError, match="did you mean 'force'"):
        pai.default_schedule("forse")


def test_a_model_without_prunable_weights_is_refused() -> None:
    batches = [(torch.zeros(1, 3), torch.tensor([0]))]
    with pytest.raises(ValueError, match="no prunable weights"):
        pai.find_mask(nn.Linear(3, 2), batches, pai.load_scorer("magnitude"), sparsity=0.5)


@pytest.mark.parametrize("sparsities", [[], [0.45], [0.95, 0.9], [0.5, 0.2, 0.9], [-0.1, 0.9]])
def test_a_schedule_of_ones_own_rises_and_ends_at_the_target(sparsities: list[float]) -> None:
    class Own(Schedule):
        def sparsities(self, target: float) -> list[float]:
            return sparsities

    def score(mask: Any) -> dict[str, Tensor]:
        return {"weight": torch.arange(100.0)}

    with pytest.raises(ValueError, match=r"^schedule: the sparsities of Own must rise and end at"):
        iterate(score, Own(), 0.9, "global")


def test_a_schedule_may_miss_the_target_by_rounding() -> None:
    class Own(Schedule):
        def sparsities(self, target: float) -> list[float]:
            return [target / 3, target / 3 - 1e-12, target + 1e-12]

    mask = iterate(lambda mask: {"weight": torch.arange(100.0)}, Own(), 0.9, "global")
    assert int(mask["weight"].sum()) == 10
