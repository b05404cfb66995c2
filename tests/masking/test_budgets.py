"""Layer budgets against hand computation, the published rule, and their properties."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import pai
from pai.masking.budgets import (
    copied_budget,
    erdos_renyi_kernel,
    proportional,
    read_budget,
    same_fraction,
    uniform_plus,
    whole_numbers,
)
from pai.masking.schedule import Exponential, Linear, Schedule, iterate
from pai.masking.select import kept_count

RESNET20 = {  # conv1, two stages' first blocks, one shortcut
    "conv1": (16, 3, 3, 3), "a": (16, 16, 3, 3), "b": (32, 16, 3, 3), "c": (32, 32, 3, 3),
    "shortcut": (32, 16, 1, 1),
}  # fmt: skip
shapes_of_layers = st.lists(
    st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8
).map(lambda rows: {f"layer{i}": row for i, row in enumerate(rows)})
sparsities = st.floats(0, 1, exclude_max=True)
NAMED = ["layer", "erk"]


def scores_of(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=stream) for name, shape in shapes.items()}


def counts(mask: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: int(keep.sum()) for name, keep in mask.items()}


def first_bits(shape: tuple[int, ...], kept: int) -> Tensor:
    return (torch.arange(math.prod(shape)) < kept).view(shape)


def size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def rigl(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Densities by the loop of RigL's appendix: make the layer above 1 dense, begin again."""
    dense: set[str] = set()
    while True:
        raw = {n: sum(s) / math.prod(s) for n, s in shapes.items() if n not in dense}
        target = density * size(shapes) - sum(math.prod(shapes[n]) for n in dense)
        if not raw:
            return dict.fromkeys(shapes, 1.0)
        epsilon = target / sum(raw[n] * math.prod(shapes[n]) for n in raw)
        most = max(raw.values())
        if most * epsilon <= 1 + 1e-12:
            return {n: 1.0 if n in dense else epsilon * raw[n] for n in shapes}
        dense |= {n for n in raw if raw[n] == most}


def test_erk_by_hand() -> None:
    shapes = {"linear": (8, 4), "conv": (16, 8, 3, 3)}  # sums of sizes 12 and 30; 32 + 1152 weights
    quotas = erdos_renyi_kernel(shapes, 100)
    assert quotas == pytest.approx({"linear": 100 * 12 / 42, "conv": 100 * 30 / 42})
    mask = pai.select(scores_of(shapes), sparsity=1 - 100 / 1184, scope="erk")
    assert counts(mask) == {"linear": 29, "conv": 71}  # 28.57 and 71.43
    assert erdos_renyi_kernel(shapes, 200) == pytest.approx({"linear": 32, "conv": 168})  # dense


@settings(deadline=None)
@given(shapes=shapes_of_layers, sparsity=st.floats(0, 0.999))
def test_erk_is_the_published_rule(shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
    kept = kept_count(sparsity, size(shapes))
    expected = rigl(shapes, kept / size(shapes))
    for name, quota in erdos_renyi_kernel(shapes, kept).items():
        assert quota / math.prod(shapes[name]) == pytest.approx(expected[name], rel=1e-6)


def test_erk_gives_small_layers_more_density_than_large_ones() -> None:
    mask = pai.select(scores_of(RESNET20), sparsity=0.9, scope="erk")
    density = {name: int(keep.sum()) / keep.numel() for name, keep in mask.items()}
    assert density["conv1"] > density["a"] > density["b"] > density["c"]
    assert density["shortcut"] > density["b"]


@settings(deadline=None)
@given(shapes=shapes_of_layers, sparsity=sparsities, scope=st.sampled_from(NAMED))
def test_totals_are_exact_no_layer_overflows_and_none_is_lost(
    shapes: dict[str, tuple[int, ...]], sparsity: float, scope: str
) -> None:
    kept = counts(pai.select(scores_of(shapes), sparsity=sparsity, scope=scope))
    total = kept_count(sparsity, size(shapes))
    assert sum(kept.values()) == total
    assert all(kept[name] <= math.prod(shape) for name, shape in shapes.items())
    if total >= len(shapes):
        assert all(count >= 1 for count in kept.values())


@settings(deadline=None)
@given(shapes=shapes_of_layers, data=st.data(), budget=st.sampled_from([0, 1]))
def test_quotas_grow_with_the_number_kept_and_counts_stay_within_one_of_them(
    shapes: dict[str, tuple[int, ...]], data: st.DataObject, budget: int
) -> None:
    rule = (same_fraction, erdos_renyi_kernel)[budget]
    fewer, more = sorted(data.draw(st.tuples(*[st.integers(1, size(shapes))] * 2)))
    low, high = rule(shapes, fewer), rule(shapes, more)
    assert all(low[name] <= high[name] * (1 + 1e-9) for name in shapes)
    capacity = {name: math.prod(shape) for name, shape in shapes.items()}
    whole = whole_numbers(high, more, capacity)
    if min(high.values()) >= 1:
        assert all(abs(whole[name] - high[name]) < 1 for name in shapes)


@settings(deadline=None)
@given(
    quotas=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), data=st.data()
)  # fmt: skip
def test_rounding_respects_capacities_that_bind(quotas: list[int], data: st.DataObject) -> None:
    named = {f"l{i}": float(q) for i, q in enumerate(quotas)}
    capacity = {name: data.draw(st.integers(0, 9)) for name in named}
    room = sum(c for name, c in capacity.items() if named[name] > 0)
    kept = sum(quotas)
    if room < kept:
        with pytest.raises(ValueError, match="cannot keep"):
            whole_numbers(named, kept, capacity)
        return
    whole = whole_numbers(named, kept, capacity)
    assert sum(whole.values()) == kept
    assert all(0 <= whole[name] <= capacity[name] for name in named)
    if all(q <= capacity[name] for name, q in named.items()):
        assert whole == named


def test_equal_remainders_go_to_the_earlier_layer_whatever_the_rounding_errors() -> None:
    capacity = dict.fromkeys("abc", 10)
    assert whole_numbers({"a": 1.5, "b": 1.5 + 1e-12, "c": 1}, 4, capacity) == {
        "a": 2, "b": 1, "c": 1,
    }  # fmt: skip
    assert whole_numbers({"a": 2.9999999999, "b": 0.5, "c": 0.5000000001}, 4, capacity) == {
        "a": 2, "b": 1, "c": 1,
    }  # fmt: skip


def test_a_layer_that_would_gain_by_a_smaller_total_is_bounded_by_what_it_has() -> None:
    """The Alabama paradox: of 11 the small layer gets 1, of 10 it would get 2."""
    scores = scores_of({"a": (6,), "b": (6,), "small": (2,)})
    eleven = pai.select(scores, 3 / 14, scope="layer")
    assert counts(eleven) == {"a": 5, "b": 5, "small": 1}
    assert counts(pai.select(scores, 4 / 14, scope="layer")) == {"a": 4, "b": 4, "small": 2}
    ten = pai.select(scores, 4 / 14, scope="layer", within=eleven)
    assert counts(ten) == {"a": 5, "b": 4, "small": 1}


def test_layer_keeps_one_weight_of_a_tiny_layer() -> None:
    kept = counts(pai.select(scores_of({"tiny": (3,), "big": (997,)}), 0.99, scope="layer"))
    assert kept == {"tiny": 1, "big": 9}  # 0.03 and 9.97 of 10


def test_uniform_plus_by_hand() -> None:
    shapes = {"conv": (4, 3, 3, 3), "middle": (40, 10), "other": (60, 10), "head": (10, 10)}
    quotas = uniform_plus(shapes, 108 + 200 + 20)
    assert quotas == pytest.approx({"conv": 108, "middle": 80, "other": 120, "head": 20})
    quotas = uniform_plus(shapes, 108 + 100 + 20)  # the head would have 10.9, it keeps 20 %
    assert quotas == pytest.approx({"conv": 108, "middle": 40, "other": 60, "head": 20})
    quotas = uniform_plus(shapes, 108 + 550)
    assert quotas == pytest.approx({"conv": 108, "middle": 200, "other": 300, "head": 50})


def test_uniform_plus_has_no_last_layer_if_the_classifier_is_not_scored() -> None:
    shapes = {"conv": (4, 3, 3, 3), "large": (50, 20, 1, 1), "last": (100, 10, 1, 1)}
    quotas = uniform_plus(shapes, 108 + 100)
    assert quotas == pytest.approx({"conv": 108, "large": 50, "last": 50})


def test_uniform_plus_without_a_convolution_has_no_dense_first_layer() -> None:
    assert uniform_plus({"a": (100, 1), "b": (100, 1)}, 40) == pytest.approx({"a": 20, "b": 20})


def test_uniform_plus_refuses_a_sparsity_that_its_dense_layer_exceeds() -> None:
    with pytest.raises(ValueError, match=r"uniform_plus keeps at least 432 .*'conv1'.* 2[0-9]+ "):
        pai.select(scores_of(RESNET20), sparsity=0.985, scope="uniform_plus")


@pytest.mark.parametrize("scope", ["layer", "uniform_plus", "erk"])
def test_the_score_decides_inside_the_layer(scope: str) -> None:
    scores = scores_of(RESNET20)
    mask = pai.select(scores, sparsity=0.9, scope=scope)
    for name, keep in mask.items():
        if 0 < int(keep.sum()) < keep.numel():
            assert scores[name][keep].min() > scores[name][~keep].max()
    other = pai.select(scores_of(RESNET20, seed=1), sparsity=0.9, scope=scope)
    assert counts(other) == counts(mask)
    assert any(not torch.equal(other[name], mask[name]) for name in mask)


@pytest.mark.parametrize("scope", ["layer", "uniform_plus", "erk", "copied"])
def test_budgets_hold_at_the_end_of_a_schedule_of_many_rounds(scope: str) -> None:
    scores = scores_of(RESNET20)
    rule: Any = scope
    if scope == "copied":
        given_mask = pai.select(scores, 0.95)
        given_mask["a"] = torch.zeros_like(given_mask["a"])  # a collapsed layer stays one
        sparsity = 1 - sum(counts(given_mask).values()) / size(RESNET20)
        rule = copied_budget(given_mask)
    else:
        sparsity = 0.95
    calls: list[int] = []

    def score(mask: Any) -> dict[str, Tensor]:
        calls.append(1)
        return scores_of(RESNET20, seed=len(calls))

    mask = iterate(score, Exponential(20), sparsity, rule)
    assert len(calls) == 20
    assert counts(mask) == counts(pai.select(scores, sparsity, rule))
    if scope == "copied":
        assert counts(mask) == counts(given_mask)


def random_scores(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Return a score that is new in every round."""
    seeds = itertools.count(1)
    return lambda mask: scores_of(shapes, next(seeds))


@settings(deadline=None, max_examples=300)
@given(
    shapes=shapes_of_layers,
    scope=st.sampled_from(["global", "layer", "erk", "uniform_plus", "copied"]),
    sparsity=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.9, 0.98, 0.99, 0.999]),
    schedule=st.builds(
        lambda kind, rounds, revive: kind(rounds, revive=revive),
        st.sampled_from([Exponential, Linear]), st.integers(1, 20), st.booleans(),
    ),
    data=st.data(),
)  # fmt: skip
def test_rounds_end_at_exactly_the_counts_of_one_shot(
    shapes: dict[str, tuple[int, ...]], scope: str, sparsity: float, schedule: Schedule,
    data: st.DataObject,
) -> None:  # fmt: skip
    rule: Any = scope
    if scope == "copied":
        few = st.sampled_from([0, 0, 0, 1])
        kept = {n: data.draw(few | st.integers(0, math.prod(s))) for n, s in shapes.items()}
        assume(any(kept.values()))
        rule = copied_budget({n: first_bits(s, kept[n]) for n, s in shapes.items()})
        sparsity = 1 - sum(kept.values()) / size(shapes)
    try:
        oneshot = counts(pai.select(scores_of(shapes), sparsity, rule))
    except ValueError as error:
        assert "uniform_plus keeps at least" in str(error)
        assume(False)
    mask = iterate(random_scores(shapes), schedule, sparsity, rule)
    if scope != "global":
        assert counts(mask) == oneshot
    assert sum(counts(mask).values()) == kept_count(sparsity, size(shapes))
    if scope == "copied":
        assert counts(mask) == kept


@pytest.mark.parametrize(
    ("sizes", "kept", "rounds"),
    [
        ([50, 50, 50], [5, 0, 0], 20),
        ([1000] * 5, [20, 20, 0, 0, 0], 100),
        ([50, 5, 200, 50, 10, 3], [25, 0, 0, 50, 5, 0], 40),
    ],
)
def test_layers_that_a_copied_budget_leaves_empty_end_empty(
    sizes: list[int], kept: list[int], rounds: int
) -> None:
    shapes = {f"l{i}": (n,) for i, n in enumerate(sizes)}
    rule = copied_budget({n: first_bits(shapes[n], k) for n, k in zip(shapes, kept, strict=True)})
    mask = iterate(random_scores(shapes), Exponential(rounds), 1 - sum(kept) / sum(sizes), rule)
    assert list(counts(mask).values()) == kept
    path = [rule(shapes, total) for total in range(sum(kept), sum(sizes) + 1, 10)]
    for name in shapes:  # nothing is emptied at once
        assert all(a[name] <= b[name] + 1e-9 for a, b in itertools.pairwise(path))
        assert all(quota[name] > 0 for quota in path[1:])


def test_uniform_plus_in_rounds_leaves_its_last_layer_enough() -> None:
    shapes = {"a": (2, 3), "b": (1, 1), "c": (8, 3, 3, 3), "d": (2, 3)}
    mask = iterate(random_scores(shapes), Exponential(7), 0.99, "uniform_plus")
    assert counts(mask) == {"a": 0, "b": 0, "c": 0, "d": 2}


def test_a_budget_can_be_a_function() -> None:
    shapes = {"a": (10,), "b": (10,)}
    scores = scores_of(shapes)
    seen = []

    def budget(shapes: Any, kept: int) -> dict[str, float]:
        seen.append(({name: tuple(shape) for name, shape in shapes.items()}, kept))
        return {"a": 1, "b": kept - 1}

    assert counts(pai.select(scores, 0.5, scope=budget)) == {"a": 1, "b": 9}
    assert seen[0] == (shapes, 10)
    with pytest.raises(ValueError, match="budgets sum to 4, not to the 10 to keep"):
        pai.select(scores, 0.5, scope=lambda shapes, kept: {"a": 2, "b": 2})
    with pytest.raises(ValueError, match=r"budget of 'b' is -1"):
        pai.select(scores, 0.5, scope=lambda shapes, kept: {"a": 11, "b": -1})
    with pytest.raises(ValueError, match="other layers: 'b'"):
        pai.select(scores, 0.5, scope=lambda shapes, kept: {"a": 10})


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    mask = pai.select(scores_of(RESNET20), sparsity=0.95)
    save_file(mask, tmp_path / "mask.safetensors")
    return tmp_path


@pytest.mark.parametrize("file", ["", "mask.safetensors"])
def test_budgets_are_copied_from_a_file_or_run_directory(stored: Path, file: str) -> None:
    mask = pai.select(scores_of(RESNET20, seed=3), 0.95, scope=str(stored / file))
    assert counts(mask) == counts(pai.select(scores_of(RESNET20), sparsity=0.95))


def test_a_copied_budget_that_does_not_fit_says_why(stored: Path) -> None:
    scope, scores = str(stored), scores_of(RESNET20)
    with pytest.raises(ValueError, match=r"keeps 854 of 17,072 .* 1,707; use sparsity=0\.95$"):
        pai.select(scores, 0.9, scope=scope)
    with pytest.raises(ValueError, match=r"keeps 854 .* 171; use sparsity=0\.95$"):
        pai.select(scores, 0.99, scope=scope)
    fewer = {name: value for name, value in scores.items() if name != "c"}
    with pytest.raises(ValueError, match="'c' that is not scored here"):
        pai.select(fewer, 0.95, scope=scope)
    with pytest.raises(ValueError, match="no layer 'fc', the network has"):
        pai.select(scores | {"fc": torch.ones(3)}, 0.95, scope=scope)
    with pytest.raises(ValueError, match=r"'c' has shape \(32, 32, 3, 3\) in .*, \(5, 5\) in the"):
        pai.select(scores | {"c": torch.ones(5, 5)}, 0.95, scope=scope)


def test_a_file_that_is_no_mask_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"model\.safetensors is no mask: 'a' is torch\.float32"):
        pai.select({"a": torch.ones(3)}, 0.5, scope=str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as a mask"):
        pai.select({"a": torch.ones(3)}, 0.5, scope=str(path))
    with pytest.raises(ValueError, match=r"mask\.safetensors cannot be read"):
        pai.select({"a": torch.ones(3)}, 0.5, scope=str(tmp_path))


def test_a_convolution_over_a_sequence_counts_as_a_first_convolution() -> None:
    quotas = uniform_plus({"conv": (4, 2, 3), "linear": (8, 8), "head": (3, 8)}, 60)
    assert quotas["conv"] == 24


@pytest.mark.parametrize(
    ("keeps", "total", "sparsity"),
    [(3, 8, "0.6"), (8, 8, "0.0"), (1, 1000, "0.999"), (1, 3, "0.7"), (5, 1000, "0.995")],
)
def test_the_shortest_sparsity_that_gives_a_masks_count_is_named(
    keeps: int, total: int, sparsity: str
) -> None:
    budget = copied_budget({"w": torch.arange(total) < keeps}, "theirs")
    says = f"theirs keeps {keeps:,} of {total:,} weights, the sparsity asked for {keeps - 1:,}; "
    with pytest.raises(ValueError, match=f"{says}use sparsity={sparsity}$".replace(".", r"\.")):
        budget({"w": (total,)}, keeps - 1)
    assert kept_count(float(sparsity), total) == keeps


def test_the_way_to_a_copied_budget_begins_at_all_weights() -> None:
    budget = copied_budget({"a": torch.tensor([True] * 3 + [False]), "b": torch.zeros(5).bool()})
    for kept, expected in ((9, (4.0, 5.0)), (3, (3.0, 0.0))):
        quotas = budget({"a": (4,), "b": (5,)}, kept)
        assert tuple(quotas.values()) == pytest.approx(expected, abs=1e-12)


def test_the_way_to_a_copied_budget_ends_at_its_counts() -> None:
    mask = {"one": torch.arange(8) < 1, "half": torch.arange(8) < 4}
    assert copied_budget(mask)._at(1.0) == pytest.approx({"one": 1, "half": 4})
    assert copied_budget(mask)._at(0.0) == pytest.approx({"one": 8, "half": 8})


def test_a_budget_that_was_read_is_named_by_its_file(stored: Path) -> None:
    budget = read_budget(stored)
    assert budget.source == str(stored / "mask.safetensors")


def test_uniform_plus_takes_just_what_its_first_and_last_layer_keep_in_any_case() -> None:
    shapes = {"conv": (4, 2, 3, 3), "middle": (5, 5), "head": (10, 10)}
    assert uniform_plus(shapes, 92) == {"conv": 72, "middle": 0, "head": 20}
    with pytest.raises(ValueError, match="92"):
        uniform_plus(shapes, 91)


def test_layers_without_a_weight_of_their_own_keep_their_least() -> None:
    assert proportional({"a": 0, "b": 0}, 3, {"a": 2, "b": 1}, {"a": 5, "b": 5}) == {"a": 2, "b": 1}
    with pytest.raises(ValueError, match=r"cannot keep 4 weights"):
        proportional({"a": 0, "b": 0}, 4, {"a": 2, "b": 1}, {"a": 5, "b": 5})


def test_a_mask_with_too_few_weights_for_the_layers_is_refused() -> None:
    scores = {"a": torch.rand(4), "b": torch.rand(4)}
    within = {"a": torch.tensor([True, False, False, False]), "b": torch.zeros(4, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"^within keeps 1 weights, fewer than 4$"):
        pai.select(scores, 0.5, scope="layer", within=within)


def test_a_budget_that_was_given_is_named_so() -> None:
    with pytest.raises(ValueError, match=r"^scope: the given mask keeps 2 of 4 weights"):
        copied_budget({"a": torch.tensor([[True, False], [True, False]])}).check_total(
            {"a": (2, 2)}, 1
        )


def test_a_layer_without_capacity_does_not_cost_another_its_last_weight() -> None:
    quotas = {"full": 0.5, "small": 0.1, "large": 1.4}
    counts = whole_numbers(quotas, 2, {"full": 0, "small": 5, "large": 5})
    assert counts == {"full": 0, "small": 1, "large": 1}


@pytest.mark.parametrize(
    ("quotas", "kept", "accepted"),
    [
        ((1.5, 2.0), 3, True),  # half a weight is rounding
        ((2.0, 2.0), 3, False),
        ((5e9, 5e9), 10**10 + 5, True),  # so is one in 10^9
        ((5e9, 5e9), 10**10 + 50, False),
        ((math.inf, 0.0), 3, False),
    ],
)
def test_quotas_add_up_to_what_is_kept(
    quotas: tuple[float, float], kept: int, accepted: bool
) -> None:
    named = dict(zip("ab", quotas, strict=True))
    capacity = dict.fromkeys("ab", 10**11)
    if accepted:
        assert sum(whole_numbers(named, kept, capacity).values()) == kept
    else:
        with pytest.raises(ValueError, match=r"no number of weights|sum to [\d,.e+]+, not to the"):
            whole_numbers(named, kept, capacity)
