"""Components of a configuration: nodes with a ``_target_``, checked against its signature, built.

The class or function a node names is its schema: option names, types and defaults come from the
signature, so that a new component needs no schema of its own. The format is Hydra's (``_target_``,
``_partial_``, nested nodes), but only components of ``pai`` and trusted packages can be named,
which Hydra's own ``instantiate`` cannot restrict, and every error carries the key it belongs to.
"""

import difflib
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from pai.errors import ConfigError, nearest, told
from pai.trust import distrust, own_components, trusted_packages

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
            range (its ``ValueError``), or it is somebody else's and fails; the key is named.
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
    except Exception as error:
        if node["_target_"] in own_components():  # a fault of ours: with its traceback
            raise
        raise ConfigError(f"{key}: {node['_target_']} fails: {told(error)}") from error


def component_faults(
    key: str, node: Mapping[str, Any], supplied: tuple[str, ...] = ()
) -> list[str]:
    """Return what is wrong with a component and the components inside it, one phrase each.

    Args:
        key: where the node stands, for the phrases.
        node: the component.
        supplied: parameters that are given later and so are no options. If there are any, the node
            must give the others that have no default, also with ``_partial_``.
    """
    if not is_component(node):
        return [f"{key}: has no _target_, the class or function it stands for"]
    try:
        parameters, hints = _signature(f"{key}._target_", node["_target_"])
    except ConfigError as error:
        return [str(error)]
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        return [f"{key}._partial_: {partial!r} should be true or false"]
    options = {name: value for name, value in node.items() if name not in _MARKERS}
    fields: dict[str, Any] = {}
    config, faults = STRICT, []
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            config = ConfigDict(**{**STRICT, "extra": "allow"})
        if name in supplied or parameter.kind in _COLLECTING:
            continue
        later = partial and not supplied
        optional = later or parameter.default is not inspect.Parameter.empty
        hint = hints.get(name, Any)
        if is_component(options.get(name)):
            hint = Any
        elif getattr(hint, "_is_protocol", False):
            hint = Any
            if name in options:
                faults.append(_plain_fault(f"{key}.{name}", options[name], hints[name]))
        # An alias, because pydantic has uses of its own for names such as "schema" and "copy".
        field = Field(None if optional else ..., alias=name)
        fields[f"option_{len(fields)}"] = (hint, field)
    faults += model_faults(key, create_model("Options", __config__=config, **fields), options)
    for name, value in options.items():
        if is_component(value):
            faults += component_faults(f"{key}.{name}", value)
    return faults


def _plain_fault(key: str, value: Any, protocol: type) -> str:
    """Say that a component is needed at ``key``, and what to write for one that has this name."""
    says = f"{key}: {value!r} is no component, a node with a _target_"
    paths = {
        path.rpartition(".")[2].lower(): path
        for path in own_components()
        if path.startswith(f"{protocol.__module__}.")
    }
    found = difflib.get_close_matches(str(value).lower(), paths, n=1)
    if not found:
        return says
    options = {name: options_of(key, path) for name, path in paths.items()}
    lacking = sorted({option for others in options.values() for option in others}
                     - {*options[found[0]]})  # fmt: skip
    without = f", and ~{key}.OPTION for each of {', '.join(lacking)} that is there"
    return f"{says}; write {key}._target_={paths[found[0]]}{without if lacking else ''}"


def options_of(key: str, path: Any) -> list[str]:
    """Return the names of the parameters of the target at ``path``; errors name ``key``."""
    parameters, _ = _signature(key, path)
    return [name for name, option in parameters.items() if option.kind not in _COLLECTING]


def _signature(key: str, path: Any) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    """Return the parameters and the type hints of the target at ``path``.

    Raises:
        ConfigError: it may not be named, is not there, or its hints cannot be read.
    """
    target = locate(key, path)
    try:
        parameters = inspect.signature(target).parameters
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{key}: the signature of {path} cannot be read: {error}") from error
    return parameters, hints


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
    module = _module(f"{key}: {path!r}", module_name)
    if not hasattr(module, attribute):
        hint = nearest(attribute, (name for name in vars(module) if not name.startswith("_")))
        raise ConfigError(
            f"{key}: {path!r} cannot be found: {module_name} has no {attribute!r}{hint}"
        )
    target = getattr(module, attribute)
    home = getattr(target, "__module__", None)
    trusted = trusted_packages()
    if not callable(target) or not isinstance(home, str) or home.split(".")[0] not in trusted:
        raise ConfigError(f"{key}: {path!r} is not a class or function of a trusted package")
    return typing.cast(Callable[..., Any], target)


def _module(what: str, name: str) -> ModuleType:
    """Import a module of a trusted package; ``what`` begins the message if that fails."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{what} cannot be imported: {told(error)}") from error
        raise ConfigError(
            f"{what} cannot be found: there is no module {error.name}; the package has to be "
            f"installed, or its folder named in PYTHONPATH"
        ) from error
    except ValueError as error:  # no name of a module
        raise ConfigError(f"{what} cannot be found: {error}") from error
    except Exception as error:
        raise ConfigError(f"{what} cannot be imported: {told(error)}") from error


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
    meant = schema.model_fields[path].description if path in schema.model_fields else None
    if meant is not None:
        message = meant if fault["type"] == "string_pattern_mismatch" else f"{message} ({meant})"
    return f"{key}: {fault['input']!r} is not valid: {message}"
