"""Components of a configuration: nodes with a ``_target_``, checked against its signature, built.

The class or function a node names is its schema: option names, types and defaults come from the
signature, so that a new component needs no schema of its own. The format is Hydra's (``_target_``,
``_partial_``, nested nodes), but only components of ``pai`` and trusted packages can be named,
which Hydra's own ``instantiate`` cannot restrict, and every error carries the key it belongs to.
"""

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from pai.errors import ConfigError, nearest
from pai.trust import distrust, trusted_packages

STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
_MARKERS = ("_target_", "_partial_")
_COLLECTING = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def is_component(node: Any) -> bool:
    """Return whether ``node`` names a class or function."""
    return isinstance(node, Mapping) and "_target_" in node


def build(key: str, node: Mapping[str, Any]) -> Any:
    """Return what ``node`` describes: its target called, or bound if ``_partial_``.

    Raises:
        ConfigError: the options do not fit the signature, or the target finds a value out of
            range (its ``ValueError``); the key is named.
    """
    faults = component_faults(key, node)
    if faults:
        raise ConfigError("; ".join(faults))
    target = locate(f"{key}._target_", node["_target_"])
    options = {
        name: build(f"{key}.{name}", value) if is_component(value) else value
        for name, value in node.items()
        if name not in _MARKERS
    }
    if node.get("_partial_", False):
        return functools.partial(target, **options)
    try:
        return target(**options)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


def component_faults(
    key: str, node: Mapping[str, Any], supplied: tuple[str, ...] = ()
) -> list[str]:
    """Return what is wrong with a component and the components inside it, one phrase each.

    Args:
        key: where the node stands, for the phrases.
        node: the component.
        supplied: parameters that are given later and so are no options.
    """
    if not is_component(node):
        return [f"{key}: has no _target_, the class or function it stands for"]
    try:
        target = locate(f"{key}._target_", node["_target_"])
    except ConfigError as error:
        return [str(error)]
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        return [f"{key}._partial_: {partial!r} should be true or false"]
    options = {name: value for name, value in node.items() if name not in _MARKERS}
    fields: dict[str, Any] = {}
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    config, faults = STRICT, []
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            config = ConfigDict(**{**STRICT, "extra": "allow"})
        if name in supplied or parameter.kind in _COLLECTING:
            continue
        optional = partial or parameter.default is not inspect.Parameter.empty
        hint = hints.get(name, Any)
        if is_component(options.get(name)):
            hint = Any
        elif getattr(hint, "_is_protocol", False):
            hint = Any
            if name in options:
                faults.append(
                    f"{key}.{name}: {options[name]!r} is no component, a node with a _target_"
                )
        # An alias, because pydantic has uses of its own for names such as "schema" and "copy".
        field = Field(None if optional else ..., alias=name)
        fields[f"option_{len(fields)}"] = (hint, field)
    faults += model_faults(key, create_model("Options", __config__=config, **fields), options)
    for name, value in options.items():
        if is_component(value):
            faults += component_faults(f"{key}.{name}", value)
    return faults


def locate(key: str, path: Any) -> Callable[..., Any]:
    """Return the object at a dotted path, if it is a component of ``pai`` or in a trusted package.

    Components of ``pai`` are those that its own ``conf/`` names; other packages are trusted if the
    environment variable ``PAI_TRUSTED_PACKAGES`` lists them. The module that defines the object
    must belong to one of them too: a configuration from a stranger cannot name ``os.system``, nor
    reach it through a module that imports it.

    Raises:
        ConfigError: not trusted, or not there.
    """
    reason = distrust(path)
    if reason:
        raise ConfigError(f"{key}: {path!r} {reason}")
    module_name, _, attribute = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(f"{key}: {path!r} cannot be found") from None
    home = getattr(target, "__module__", None)
    trusted = trusted_packages()
    if not callable(target) or not isinstance(home, str) or home.split(".")[0] not in trusted:
        raise ConfigError(f"{key}: {path!r} is not a class or function of a trusted package")
    return typing.cast(Callable[..., Any], target)


def model_faults(prefix: str, schema: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Return one phrase for each way in which ``values`` violates ``schema``."""
    try:
        schema.model_validate(dict(values))
    except ValidationError as error:
        return [_phrase(prefix, schema, fault) for fault in error.errors()]
    return []


def _phrase(prefix: str, schema: type[BaseModel], fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    key = f"{prefix}.{path}" if prefix else path
    if fault["type"] == "extra_forbidden":
        siblings = schema.model_fields
        for part in fault["loc"][:-1]:
            kind = siblings[str(part)].annotation
            kinds = [kind, *typing.get_args(kind)]  # of "X | None"
            siblings = next((k.model_fields for k in kinds if hasattr(k, "model_fields")), {})
        names = [field.alias or name for name, field in siblings.items()]
        known = ", ".join(names) or "no option"
        hint = nearest(str(fault["loc"][-1]), names)
        if key == "experiment":
            hint = "; the first line of that file must be '# @package _global_'"
        return f"{key}: unknown key{hint} (known: {known})"
    if fault["type"] == "missing":
        return f"{key}: missing; give it a value"
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key}: {fault['input']!r} is not valid: {message}"
