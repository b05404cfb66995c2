"""Components: only trusted code is named, options fit signatures, faults name their key."""

import functools
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from pai.components import build, component_faults, locate
from pai.errors import ConfigError
from pai.training.optimizers import Sgd
from pai.training.options import Training
from pai.trust import TRUST_VARIABLE

MODULE = "users_own_parts"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package that only a user who says so trusts, freshly imported."""
    monkeypatch.setenv(TRUST_VARIABLE, MODULE)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return importlib.import_module(MODULE)


def node(target: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"{MODULE}.{target}", **options}


def fault(**options: Any) -> str:
    """Return the only fault of ``record`` with these options."""
    (phrase,) = component_faults("thing", node("record", **options))
    return phrase


@pytest.mark.parametrize(
    "path",
    [
        "os.system", "builtins.eval", "builtins.exec", "subprocess.run", "pickle.loads", "print",
        "torch.load", "torch.hub.load", "functools.partial", "paint.brush", "paix.cli.main",
        "pai.runner.time.sleep", "pai.records.os.system", "pai.records.os.replace",
        "pai.environment.subprocess.run", "pai.components.importlib.import_module",
        "pai.runner.Path", "pai.components.create_model", "pai.environment.version",
        "pai.runner.save", "pai.warmup.islice", "pai.training.loop.tqdm", "pai.plan.torch.load",
        "pai.records.FILE_NAME", "pai.masking.select.SCOPES", "pai.objective.LossFn",
        "pai.records", "pai.reports", "pai.nothing", "pai.nothing.at_all", "pai.records.nothing",
        "pai.models.vgg.VGG.forward", "pai", "pai.", ".pai", "pai..cli", "", " pai.models.vgg.vgg",
        None, 3, ["pai.models.vgg.vgg"], {"_target_": "pai.models.vgg.vgg"},
    ],
)  # fmt: skip
def test_only_classes_and_functions_of_trusted_packages_can_be_named(path: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        locate("model._target_", path)
    assert str(caught.value).startswith("model._target_: ")
    assert repr(path) in str(caught.value)


def test_pais_own_classes_and_functions_can_be_named() -> None:
    assert locate("x", "pai.training.optimizers.Sgd") is Sgd
    assert locate("x", "pai.models.vgg.vgg").__name__ == "vgg"


def test_an_untrusted_module_is_not_even_imported(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.modules.pop(MODULE)
    monkeypatch.delenv(TRUST_VARIABLE)
    with pytest.raises(ConfigError, match=rf"not in a trusted package \(pai\).*{TRUST_VARIABLE}"):
        build("scorer", node("record"))
    assert MODULE not in sys.modules


def test_a_package_whose_name_begins_alike_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pai_lookalike.py").write_text("def brush() -> None: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"not in a trusted package"):
        locate("x", "pai_lookalike.brush")
    assert "pai_lookalike" not in sys.modules


def test_the_variable_names_several_packages_to_trust(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, f"something,{MODULE},")
    assert build("scorer", node("record", number=5))["number"] == 5
    with pytest.raises(ConfigError, match=r"not in a trusted package"):
        locate("x", "os.system")


def test_an_empty_variable_trusts_nothing_more(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, ",")
    with pytest.raises(ConfigError, match=r"not in a trusted package"):
        locate("x", f"{MODULE}.record")


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("name", ["NOT_CALLABLE", "CALLS", "Sequence", "dataclass", "missing"])
def test_a_trusted_module_gives_only_what_it_defines(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        locate("x", f"{MODULE}.{name}")


@pytest.mark.usefixtures("parts")
def test_options_reach_the_target() -> None:
    assert build("thing", node("record", number=3, scale=2, on=True, name="y")) == {
        "number": 3, "scale": 2, "on": True, "name": "y",
    }  # fmt: skip


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("number", "many"), ("number", "3"), ("number", 1.5), ("number", 1.0), ("number", True),
        ("number", None), ("number", [1]), ("scale", "1.5"), ("scale", "wide"), ("scale", True),
        ("scale", None), ("on", 1), ("on", "true"), ("on", None), ("name", 3), ("name", None),
        ("name", True), ("number", {"a": 1}),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_named_with_its_key(option: str, value: Any) -> None:
    assert fault(**{option: value}).startswith(f"thing.{option}: {value!r} is not valid: ")


@pytest.mark.usefixtures("parts")
def test_an_unknown_option_is_named_with_the_nearest_known_one() -> None:
    phrase = fault(nunber=3)
    assert phrase.startswith("thing.nunber: unknown key; did you mean 'number'?")
    assert "number, scale, on, name" in phrase


@pytest.mark.parametrize("marker", ["_args_", "_recursive_", "_convert_"])
@pytest.mark.usefixtures("parts")
def test_the_other_markers_of_hydra_are_unknown_options(marker: str) -> None:
    assert fault(**{marker: True}).startswith(f"thing.{marker}: unknown key")


@pytest.mark.usefixtures("parts")
def test_every_fault_is_reported_at_once() -> None:
    phrases = component_faults("thing", node("Range", low="a", hihg=3))
    assert [phrase.split(":")[0] for phrase in phrases] == [
        "thing.low", "thing.high", "thing.hihg",
    ]  # fmt: skip
    assert phrases[1] == "thing.high: missing; give it a value"
    with pytest.raises(ConfigError) as caught:
        build("thing", node("Range", low="a", hihg=3))
    assert str(caught.value) == "; ".join(phrases)


@pytest.mark.usefixtures("parts")
def test_a_literal_option_lists_its_choices() -> None:
    (phrase,) = component_faults("thing", node("Range", low=1, high=2, kind="opne"))
    assert phrase == "thing.kind: 'opne' is not valid: input should be 'open' or 'closed'"


@pytest.mark.usefixtures("parts")
def test_a_value_error_of_the_constructor_becomes_a_config_error_with_the_key() -> None:
    with pytest.raises(ConfigError) as caught:
        build("outer.thing", node("Range", low=3, high=2))
    assert str(caught.value) == "outer.thing: low must not exceed high, got 3 > 2"


@pytest.mark.usefixtures("parts")
def test_other_errors_of_somebody_elses_constructor_are_told_with_their_place() -> None:
    with pytest.raises(ConfigError) as caught:
        build("thing", node("broken"))
    assert re.fullmatch(
        rf"thing: {MODULE}.broken fails: TypeError: a fault of its own \(.*{MODULE}.py, line \d+\)",
        str(caught.value),
    )


def test_other_errors_of_our_own_constructors_are_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(self: Sgd) -> None:
        raise TypeError("a fault of ours")

    monkeypatch.setattr(Sgd, "__post_init__", fails)
    with pytest.raises(TypeError, match="a fault of ours"):
        build("optimizer", {"_target_": "pai.training.optimizers.Sgd", "lr": 0.1})


@pytest.mark.usefixtures("parts")
def test_hints_that_cannot_be_read_are_told() -> None:
    (phrase,) = component_faults("thing", node("unreadable", number=3))
    assert phrase.startswith(f"thing._target_: the signature of {MODULE}.unreadable cannot be read")
    assert "NoSuchType" in phrase


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        ("def x(:", r"cannot be imported: SyntaxError: invalid syntax \(somebodys.py, line 1\)"),
        (
            "\nimport no_such_module",
            r"cannot be imported: ModuleNotFoundError: No module named 'no_such_module' "
            r"\(.*somebodys.py, line 2\)",
        ),
        ("x = 1 / 0", r"cannot be imported: ZeroDivisionError: .* \(.*somebodys.py, line 1\)"),
        ("class Cubic: ...", "cannot be found: somebodys has no 'Cubi'; did you mean 'Cubic'?"),
        (None, "cannot be found: there is no module somebodys; the package has to be installed, "
               "or its folder named in PYTHONPATH"),
    ],
)  # fmt: skip
def test_why_a_component_is_not_there_is_told(
    content: str | None, phrase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "somebodys")
    if content is not None:
        (tmp_path / "somebodys.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "somebodys", raising=False)
    with pytest.raises(ConfigError, match=rf"^scorer: 'somebodys\.Cubi' {phrase}"):
        locate("scorer", "somebodys.Cubi")
    sys.modules.pop("somebodys", None)


@pytest.mark.parametrize("given", ["AdamW", "adam"])
def test_the_name_of_a_class_in_the_place_of_a_component_tells_what_to_write(given: str) -> None:
    whole = {"_target_": f"{Training.__module__}.Training", "epochs": 1, "batch_size": 2}
    schedule = {"_target_": "pai.training.lr_schedules.Constant"}
    (fault,) = component_faults("training", {**whole, "lr_schedule": schedule, "optimizer": given})
    assert fault.endswith(
        "; write training.optimizer._target_=pai.training.optimizers.AdamW, and "
        "~training.optimizer.OPTION for each of momentum, nesterov that is there"
    )


def test_components_inside_components_are_built_first(parts: Any) -> None:
    holder = build("thing", node("Holder", inner=node("Range", low=1, high=2)))
    assert isinstance(holder, parts.Holder)
    assert holder.inner == parts.Range(1, 2)


@pytest.mark.usefixtures("parts")
def test_faults_inside_components_have_the_full_key() -> None:
    whole = node("Holder", inner=node("Range", low="a", high=2))
    assert component_faults("thing", whole)[0].startswith("thing.inner.low: 'a' is not valid")
    with pytest.raises(ConfigError, match=r"^thing\.inner: low must not exceed"):
        build("thing", node("Holder", inner=node("Range", low=3, high=2)))
    with pytest.raises(ConfigError, match=r"^thing\.inner\._target_: 'os\.system'"):
        build("thing", node("Holder", inner={"_target_": "os.system"}))


@pytest.mark.parametrize("place", ["list", "mapping"])
def test_a_target_inside_plain_data_is_never_executed(parts: Any, place: str) -> None:
    hidden = node("record", number=99)
    plain: dict[str, Any] = {"list": {"items": [hidden]}, "mapping": {"extra": {"a": hidden}}}
    holder = build("thing", node("Holder", inner=node("Range", low=1, high=2), **plain[place]))
    assert (holder.items or holder.extra) in ([hidden], {"a": hidden})
    assert parts.CALLS == []


@pytest.mark.parametrize("plain", [3, None, "sgd", [1], {"lr": 0.1}])
@pytest.mark.parametrize("option", ["optimizer", "lr_schedule"])
def test_plain_data_in_the_place_of_a_component_is_a_fault(option: str, plain: Any) -> None:
    parts = {
        "optimizer": {"_target_": "pai.training.optimizers.Sgd", "lr": 0.1},
        "lr_schedule": {"_target_": "pai.training.lr_schedules.Constant"},
    }
    whole = {"_target_": f"{Training.__module__}.Training", "epochs": 1, "batch_size": 2}
    faults = component_faults("training", {**whole, **parts, option: plain})
    assert len(faults) == 1
    assert faults[0].startswith(f"training.{option}: ")


def test_partial_binds_options_without_calling(parts: Any) -> None:
    bound = build("thing", node("record", number=4, _partial_=True))
    assert isinstance(bound, functools.partial)
    assert parts.CALLS == []
    assert bound(scale=2.0) == {"number": 4, "scale": 2.0, "on": False, "name": "x"}


@pytest.mark.usefixtures("parts")
def test_partial_leaves_the_missing_options_to_the_caller_but_checks_the_others() -> None:
    assert build("thing", node("Range", low=1, _partial_=True))(high=3).high == 3
    assert component_faults("thing", node("Range", _partial_=True, low="a", hgih=1)) == [
        "thing.low: 'a' is not valid: input should be a valid integer",
        "thing.hgih: unknown key; did you mean 'high'? (known: low, high, kind)",
    ]


def test_partial_components_inside_components(parts: Any) -> None:
    holder = build("thing", node("Holder", inner=node("Range", low=1, _partial_=True)))
    assert holder.inner(high=2) == parts.Range(1, 2)


def test_partial_false_calls(parts: Any) -> None:
    assert build("thing", node("Range", low=1, high=2, _partial_=False)) == parts.Range(1, 2)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_partial_is_true_or_false(value: Any) -> None:
    assert fault(_partial_=value) == f"thing._partial_: {value!r} should be true or false"


@pytest.mark.usefixtures("parts")
def test_parameters_given_by_the_run_are_no_options() -> None:
    assert component_faults("thing", node("Range", low=1), supplied=("high",)) == []
    (phrase,) = component_faults("thing", node("Range", low=1, high=2), supplied=("high",))
    assert phrase.startswith("thing.high: unknown key")


@pytest.mark.parametrize("nothing", [{}, {"lr": 1}, 3, None])
def test_a_node_without_a_target_is_no_component(nothing: Any) -> None:
    (phrase,) = component_faults("scorer", nothing)
    assert phrase.startswith("scorer: has no _target_")


@pytest.mark.usefixtures("parts")
def test_a_target_with_free_keywords_takes_any_option() -> None:
    assert build("thing", node("free", anything=3)) == {"anything": 3}
    assert build("thing", node("free")) == {}


@pytest.mark.usefixtures("parts")
def test_option_names_that_the_checker_uses_itself_work_like_others() -> None:
    assert build("thing", node("awkward", schema="b", copy=2)) == ("b", 2)
