"""The schema of a whole configuration, attacked with random values."""

import copy
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import config

from pai.errors import ConfigError
from pai.schema import GROUPS, check_config

FEW = settings(max_examples=25, deadline=None)
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
no_number = st.text(max_size=5) | st.lists(st.integers(), max_size=2) | st.booleans() | st.none()
no_text = st.integers() | st.floats() | st.booleans() | st.none() | st.lists(st.text(), max_size=2)
no_mapping = st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2) | st.none()
WRONG: dict[str, st.SearchStrategy[Any]] = {
    "sparsity": no_number | st.floats(max_value=0, exclude_max=True) | st.floats(min_value=1)
    | st.just(float("nan")) | st.integers(max_value=-1) | st.integers(min_value=1),
    "seed": no_number | st.floats() | st.integers(max_value=-1),
    "scope": no_text,
    "sparsity_is": no_text | st.text().filter(lambda text: text not in ("direct", "effective")),
    "include_classifier": st.integers() | st.floats() | st.text() | st.none(),
    "device": no_text | st.text().filter(lambda text: not DEVICE.fullmatch(text)),
    "scoring": no_mapping | st.floats(),
    **dict.fromkeys(GROUPS, no_mapping),
}  # fmt: skip
VALID: dict[str, st.SearchStrategy[Any]] = {
    "sparsity": st.floats(min_value=0, max_value=1, exclude_max=True) | st.just(0),
    "seed": st.integers(min_value=0),
    "scope": st.sampled_from(["global", "layer", "erk", "2:4"]),
    "sparsity_is": st.sampled_from(["direct", "effective"]),
    "include_classifier": st.booleans(),
    "device": st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:12"]),
}
COUNTS = ("samples_per_class", "batch_size", "warmup_batch_size")


def changed(**values: Any) -> dict[str, Any]:
    """Return the default configuration with some top-level keys replaced."""
    return {**config(), **values}


def refusal(settings: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(settings)
    return str(caught.value)


@pytest.mark.parametrize("key", WRONG)
@given(data=st.data())
@FEW
def test_a_wrong_value_of_a_top_level_key_is_refused_in_one_line_that_names_it(
    key: str, data: st.DataObject
) -> None:
    value = data.draw(WRONG[key])
    message = refusal(changed(**{key: value}))
    assert message.startswith(f"{key}: {value!r} is not valid: ")
    assert len(message.splitlines()) == 1


@given(st.fixed_dictionaries(VALID))
@FEW
def test_valid_values_pass(values: dict[str, Any]) -> None:
    check_config(changed(**values))


@given(st.dictionaries(st.sampled_from(sorted(WRONG)), st.none(), min_size=1))
@FEW
def test_all_wrong_keys_are_named_at_once(wrong: dict[str, None]) -> None:
    message = refusal(changed(**wrong))
    assert {phrase.split(":")[0] for phrase in message.split("; ")} == set(wrong)


@pytest.mark.parametrize("sparsity", [1, 1.0, -1e-9, 95, float("nan"), float("inf"), -float("inf")])
def test_sparsity_is_a_fraction_below_one(sparsity: float) -> None:
    assert refusal(changed(sparsity=sparsity)).startswith("sparsity: ")


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.5, 0.999999])
def test_sparsity_may_be_zero_but_not_one(sparsity: float) -> None:
    check_config(changed(sparsity=sparsity))


@given(name=st.text(min_size=1).filter(lambda name: name not in config()), value=st.integers())
@FEW
def test_an_unknown_top_level_key_is_refused(name: str, value: int) -> None:
    assert refusal(changed(**{name: value})).startswith(f"{name}: unknown key")


@pytest.mark.parametrize("key", [*WRONG])
def test_a_missing_top_level_key_is_named(key: str) -> None:
    whole = config()
    del whole[key]
    assert refusal(whole) == f"{key}: missing; give it a value"


@pytest.mark.parametrize("key", COUNTS)
@given(value=no_number | st.floats() | st.integers(max_value=0))
@FEW
def test_counts_for_scoring_are_positive_integers(key: str, value: Any) -> None:
    whole = config()
    whole["scoring"][key] = value
    assert refusal(whole).startswith(f"scoring.{key}: {value!r} is not valid: ")


def test_a_typo_beside_the_scoring_options_is_named_with_its_neighbours() -> None:
    whole = config()
    whole["scoring"]["samples_per_clas"] = whole["scoring"].pop("samples_per_class")
    message = refusal(whole)
    assert "scoring.samples_per_clas: unknown key; did you mean 'samples_per_class'?" in message
    assert "scoring.samples_per_class: missing" in message


@pytest.mark.parametrize("group", GROUPS)
def test_a_fault_in_any_group_is_named_with_the_group(group: str) -> None:
    whole = config()
    whole[group]["no_such_option"] = 3
    assert refusal(whole).startswith(f"{group}.no_such_option: unknown key")


def test_what_the_run_supplies_to_a_model_is_no_option() -> None:
    whole = config()
    whole["model"]["num_classes"] = 10
    assert refusal(whole).startswith("model.num_classes: unknown key")


def test_checking_changes_nothing() -> None:
    whole = config()
    before = copy.deepcopy(whole)
    check_config(whole)
    assert whole == before
