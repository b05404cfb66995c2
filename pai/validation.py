"""Strict validation of a composed configuration, before anything expensive starts.

Every component names its class or function (``_target_``), and that signature is its schema: names,
types and defaults are checked against it, so that a new component needs no schema of its own.
"""

import importlib
import inspect
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from pai.errors import ConfigError, nearest

TRUST_VARIABLE = "PAI_TRUSTED_PACKAGES"
"""Environment variable: further packages, comma-separated, that ``_target_`` may name."""

_STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


class Scoring(BaseModel):
    """What the scorer sees."""

    model_config = _STRICT
    samples_per_class: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    warmup_batch_size: int = Field(ge=2)


class TopLevel(BaseModel):
    """The keys of ``conf/config.yaml``; the groups are components, checked one by one."""

    model_config = _STRICT
    dataset: dict[str, Any]
    model: dict[str, Any]
    scorer: dict[str, Any]
    warmup: dict[str, Any]
    schedule: dict[str, Any]
    training: dict[str, Any]
    logger: dict[str, Any]
    scoring: Scoring
    sparsity: float = Field(ge=0, lt=1)
    scope: typing.Literal["global", "layer"]
    include_classifier: bool
    seed: int = Field(ge=0)
    device: str = Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")


GROUPS = ("dataset", "model", "scorer", "warmup", "schedule", "training", "logger")
_SUPPLIED_BY_THE_RUN = {"model": ("num_classes", "in_channels"), "warmup": ("model", "batches")}


def check_config(config: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` naming every unknown key, wrong type and value out of range."""
    faults = _faults("", TopLevel, config)
    if not faults:
        for group in GROUPS:
            faults += component_faults(group, config[group], _SUPPLIED_BY_THE_RUN.get(group, ()))
    if faults:
        raise ConfigError("; ".join(faults))


def check_component(key: str, node: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` if the options of one component do not fit its signature."""
    faults = component_faults(key, node)
    if faults:
        raise ConfigError("; ".join(faults))


def component_faults(key: str, node: Mapping[str, Any], supplied: tuple[str, ...] = ()) -> list[str]:
    """Return what is wrong with a component and the components inside it; one phrase each."""
    if "_target_" not in node:
        return [f"{key}: has no _target_, the class or function it stands for"]
    try:
        target = locate(f"{key}._target_", node["_target_"])
    except ConfigError as error:
        return [str(error)]
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        return [f"{key}._partial_: {partial!r} should be true or false"]
    fields: dict[str, Any] = {}
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name, parameter in inspect.signature(target).parameters.items():
        given = node.get(name)
        if name in supplied:
            continue
        nested = isinstance(given, Mapping) and "_target_" in given
        optional = partial or parameter.default is not inspect.Parameter.empty
        fields[name] = (Any if nested else hints.get(name, Any), None if optional else ...)
    schema = create_model("Options", __config__=_STRICT, **fields)
    options = {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}
    faults = _faults(key, schema, options)
    for name, value in options.items():
        if isinstance(value, Mapping) and "_target_" in value:
            faults += component_faults(f"{key}.{name}", value)
    return faults


def locate(key: str, path: Any) -> Callable[..., Any]:
    """Return the object at a dotted path, if it lives in a trusted package.

    Both the path and the module that defines the object must belong to ``pai`` or a package listed
    in the environment variable ``PAI_TRUSTED_PACKAGES``: a configuration from a stranger cannot
    name ``os.system``, nor reach it through a module that imports ``os``.

    Raises:
        ConfigError: not trusted, or not there.
    """
    trusted = {"pai", *filter(None, os.environ.get(TRUST_VARIABLE, "").split(","))}
    if not isinstance(path, str) or path.split(".")[0] not in trusted:
        raise ConfigError(
            f"{key}: {path!r} is not in a trusted package ({', '.join(sorted(trusted))}); "
            f"to trust another, name it in the environment variable {TRUST_VARIABLE}"
        )
    module_name, _, attribute = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(f"{key}: {path!r} cannot be found") from None
    home = getattr(target, "__module__", None)
    if not callable(target) or not isinstance(home, str) or home.split(".")[0] not in trusted:
        raise ConfigError(f"{key}: {path!r} is not a class or function of a trusted package")
    return typing.cast(Callable[..., Any], target)


@contextmanager
def located_value_errors(key: str) -> Iterator[None]:
    """Turn a ``ValueError`` of a component's constructor into a :class:`ConfigError` with its key."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


def _faults(prefix: str, schema: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    try:
        schema.model_validate(dict(values))
    except ValidationError as error:
        return [_phrase(prefix, schema, fault) for fault in error.errors()]
    return []


def _phrase(prefix: str, schema: type[BaseModel], fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("function-"))
    key = f"{prefix}.{path}" if prefix else path
    if fault["type"] == "extra_forbidden":
        siblings = schema.model_fields
        for part in fault["loc"][:-1]:
            annotation = siblings[str(part)].annotation
            siblings = getattr(annotation, "model_fields", {})
        known = ", ".join(siblings) or "no option"
        return f"{key}: unknown key{nearest(str(fault['loc'][-1]), siblings)} (known: {known})"
    if fault["type"] == "missing":
        return f"{key}: missing; give it a value"
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key}: {fault['input']!r} is not valid: {message}"
