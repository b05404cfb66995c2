import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pai
from pai.masking.select import kept_count

sparsities = st.floats(0, 1, exclude_max=True, allow_nan=False)
values = st.floats(-(2.0**99), 2.0**99, width=32)
layers = st.lists(st.lists(values, min_size=1, max_size=30), min_size=1, max_size=4)
ties = st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=20), min_size=1)


def named(rows: list[list[float]]) -> dict[str, Tensor]:
    return {f"layer{i}": torch.tensor(row) for i, row in enumerate(rows)}


def brute_force(scores: list[float], count: int) -> list[bool]:
    """Rank by score, then by position; keep the first ``count``."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [i in order[:count] for i in range(len(scores))]


@settings(deadline=None)
@given(rows=layers | ties, sparsity=sparsities)
def test_global_selection_equals_a_sort_by_score_and_position(
    rows: list[list[float]], sparsity: float
) -> None:
    scores = named(rows)
    mask = pai.select(scores, sparsity=sparsity, scope="global")
    flat = [value for tensor in scores.values() for value in tensor.tolist()]
    count = max(1, round((1 - sparsity) * len(flat)))
    kept = [bit for tensor in mask.values() for bit in tensor.tolist()]
    assert kept == brute_force(flat, count)
    assert all(tensor.dtype == torch.bool for tensor in mask.values())


@settings(deadline=None)
@given(rows=layers | ties, sparsity=sparsities)
def test_layer_selection_treats_every_layer_alone(rows: list[list[float]], sparsity: float) -> None:
    scores = named(rows)
    mask = pai.select(scores, sparsity=sparsity, scope="layer")
    total = sum(tensor.numel() for tensor in scores.values())
    assert sum(int(keep.sum()) for keep in mask.values()) == kept_count(sparsity, total)
    for name, tensor in scores.items():
        assert mask[name].tolist() == brute_force(tensor.tolist(), int(mask[name].sum()))


@settings(deadline=None)
@given(
    rows=layers | ties,
    pair=st.tuples(sparsities, sparsities),
    scope=st.sampled_from(["global", "layer", "erk"]),
)
def test_selection_within_a_mask_never_revives_and_counts_exactly(
    rows: list[list[float]], pair: tuple[float, float], scope: Any
) -> None:
    scores = named(rows)
    first, second = sorted(pair)
    outer = pai.select(scores, sparsity=first, scope=scope)
    opposite = {name: -value for name, value in scores.items()}
    inner = pai.select(opposite, sparsity=second, scope=scope, within=outer)
    assert all(bool((inner[name] <= outer[name]).all()) for name in scores)
    total = sum(value.numel() for value in scores.values())
    assert sum(int(m.sum()) for m in inner.values()) == kept_count(second, total)


def test_shapes_devices_and_precision_are_respected() -> None:
    scores = {
        "a": torch.tensor([[1.0, 3.0]], dtype=torch.float32),
        "b": torch.tensor([2.0, 1 + 1e-12], dtype=torch.float64),
    }
    mask = pai.select(scores, sparsity=0.25)
    assert mask["a"].shape == (1, 2)
    assert mask["a"].tolist() == [[False, True]]  # 1 < 1 + 1e-12 in float64
    assert mask["b"].tolist() == [True, True]


def test_at_least_one_weight_stays() -> None:
    assert kept_count(0.999999, 10) == 1
    assert int(pai.select({"a": torch.zeros(10)}, sparsity=0.99)["a"].sum()) == 1


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ValueError, match="sparsity must be at least 0 and below 1"):
        pai.select({"a": torch.ones(3)}, sparsity=sparsity)


def test_nan_scores_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'b' contain NaN"):
        pai.select({"a": torch.ones(2), "b": torch.tensor([1.0, math.nan])}, sparsity=0.5)


@pytest.mark.parametrize(
    ("within", "says"),
    [
        ({"layr": torch.ones(4)}, r"within: 'layr' is in the mask and not .* did you mean 'layer'"),
        ({}, "within: the mask has no 'layer'"),
        ({"layer": torch.ones(5).bool()}, r"'layer' has shape \(5,\), the parameter has \(4,\)"),
        ({"layer": torch.ones(4).byte()}, r"'layer' is torch\.uint8; masks are torch\.bool"),
        ({"layer": torch.ones(4)}, r"'layer' is torch\.float32; masks are torch\.bool"),
    ],
)
@pytest.mark.parametrize("scope", ["global", "erk"])
def test_a_mask_that_is_none_of_these_weights_is_refused(
    within: Any, says: str, scope: str
) -> None:
    with pytest.raises(ValueError, match=says):
        pai.select({"layer": torch.rand(4)}, sparsity=0.5, scope=scope, within=within)


def test_unknown_scope_empty_scores_and_a_too_small_mask_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'layer'"):
        pai.select({"a": torch.ones(2)}, sparsity=0.5, scope="layers")
    with pytest.raises(ValueError, match=r"^scores is empty: there is nothing to select from$"):
        pai.select({}, sparsity=0.5)
    nothing = {"a": torch.zeros(4, dtype=torch.bool)}
    with pytest.raises(ValueError, match="fewer than 2"):
        pai.select({"a": torch.ones(4)}, sparsity=0.5, within=nothing)


@pytest.mark.parametrize("sparsity", ["0.9", None, 1.0, -0.1, float("nan")])
def test_a_sparsity_is_a_number_below_one(sparsity: Any) -> None:
    with pytest.raises(ValueError, match=r"^sparsity must be at least 0 and below 1"):
        pai.select({"weight": torch.arange(4.0)}, sparsity)


@pytest.mark.parametrize("scope", [None, 3, ["global"]])
def test_a_scope_is_a_text_or_a_rule(scope: Any) -> None:
    with pytest.raises(ValueError, match=r"^scope must be a text such as 'global'.* got"):
        pai.select({"weight": torch.arange(4.0)}, 0.5, scope)


def test_a_text_that_is_no_scope_is_refused_with_what_there_is() -> None:
    known = "global, layer, uniform_plus, erk"
    for scope in ("nowhere", "x" * 5000):
        with pytest.raises(
            ValueError, match=rf"^scope: '{scope}' is not one of {known}, no pattern"
        ):
            pai.select({"a": torch.ones(3)}, 0.5, scope)
