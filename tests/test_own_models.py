"""Model builders and schedules of the user's own: what the run supplies, and when it refuses."""

import importlib
from typing import Any

import pytest
from tiny import config
from torch import nn

from pai.data.bundle import DataSpec
from pai.errors import ConfigError
from pai.plan import Plan, _model_builder, prepare
from pai.trust import TRUST_VARIABLE

MODULE = "users_own_parts"


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, MODULE)


def plan(target: str, **options: Any) -> Plan:
    whole = config("dataset.image_size=16")
    whole["model"] = {"_target_": f"{MODULE}.{target}", "_partial_": True, **options}
    return prepare(whole)


def test_classes_and_channels_are_supplied_and_options_pass() -> None:
    model = plan("small_model", width=5).build_model()
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(5, 1, 3, 3), (5,), (10, 5), (10,)]


@pytest.mark.parametrize("target", ["sized_model", "SizedModel"])
def test_the_image_size_goes_to_a_builder_that_has_the_parameter(target: str) -> None:
    layers = [m for m in plan(target).build_model().modules() if isinstance(m, nn.Linear)]
    assert layers[0].in_features == 16 * 16


def test_free_keywords_do_not_ask_for_the_image_size() -> None:
    model: Any = plan("any_model").build_model()
    assert model[3].out_features == 10
    assert importlib.import_module(MODULE).CALLS[-1] == 2


def test_a_builder_without_a_needed_parameter_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^model\._target_: .*blind_model .*in_channels"):
        plan("blind_model")


def test_what_the_run_supplies_is_no_option() -> None:
    with pytest.raises(ConfigError, match=r"^model\.image_size: unknown key"):
        plan("sized_model", image_size=3)


def test_an_option_without_a_default_that_the_file_leaves_out_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"^model\.hidden: missing; give it a value$"):
        plan("demanding_model")


@pytest.mark.parametrize(
    ("target", "phrase"),
    [
        (
            "no_model",
            r"^model\._target_: .*no_model returns a function, and an nn.Module is needed$",
        ),
        (
            "failing_model",
            r"^model\._target_: .*failing_model fails: NameError: name 'hidden' is not defined "
            r"\(.*users_own_parts.py, line \d+\)$",
        ),
        (
            "stumbling_model",
            r"^model: fails on images of 1x16x16 \(dataset.image_size\): KeyError: 'features' "
            r"\(.*users_own_parts.py, line \d+\)$",
        ),
    ],
)
def test_whatever_a_builder_does_wrong_is_told_in_one_line(target: str, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        plan(target)


def test_a_failed_assertion_of_the_model_is_a_misfit_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        plan("silent_model")
    assert str(caught.value) == (
        "model: does not fit images of 1x16x16 (dataset.image_size): AssertionError"
    )


def test_a_builder_for_square_images_refuses_others_and_another_builder_does_not() -> None:
    spec = DataSpec(num_classes=3, channels=1, height=8, width=16, smallest_class=10)
    sized = {"_target_": f"{MODULE}.sized_model", "_partial_": True}
    with pytest.raises(ConfigError, match=r"^model\._target_: .*square.*8x16"):
        _model_builder(sized, spec)
    model = _model_builder({**sized, "_target_": f"{MODULE}.small_model"}, spec)()
    assert isinstance(model, nn.Module)


def test_a_schedule_of_ones_own_that_misses_the_target_is_refused_before_the_run() -> None:
    whole = config("sparsity=0.5")
    whole["schedule"] = {"_target_": f"{MODULE}.Overshooting"}
    with pytest.raises(ConfigError) as caught:
        prepare(whole)
    assert str(caught.value) == (
        "schedule: the sparsities of Overshooting must rise and end at the target 0.5; they are "
        "[0.25, 0.75]"
    )
