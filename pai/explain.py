"""Why a configuration could not be composed, in one line."""

import re
from typing import Any

from hydra import compose
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from pai.components import options_of
from pai.errors import ConfigError, first_line, nearest
from pai.identity import below, flatten
from pai.paths import config_folder
from pai.schema import GROUPS, SUPPLIED_BY_THE_RUN

INSIDE_HYDRA = (AssertionError, AttributeError, KeyError, TypeError)
"""What Hydra raises where an interpolation stands for something else than it expects."""


def explain(  # noqa: PLR0911  (one for each kind of error)
    error: Exception, name: str, overrides: list[str]
) -> str:
    """Return in one line what is wrong: the key, the value, the nearest valid choice.

    Args:
        error: of Hydra, OmegaConf or the YAML parser.
        name: of the primary configuration.
        overrides: of the command line.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = list(error.options or [])
        known = f" (available: {', '.join(options)})" if options else ""
        return f"{group or 'config'}: {choice!r} is not a choice{nearest(choice, options)}{known}"
    if isinstance(error, YAMLError | OSError):
        return f"a YAML file cannot be read: {' '.join(str(error).split())}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: missing; give it a value"
    if isinstance(error, KeyError):
        return f"hydra.job.env_copy: no environment variable {error}"
    if isinstance(error, INSIDE_HYDRA):
        return (
            f"cannot be composed ({type(error).__name__}: {first_line(error)}): choices, and what "
            f"Hydra reads itself (hydra.job, hydra.runtime, ...), have to be written out; the "
            f"overrides were: {' '.join(overrides)}"
        )
    cause = error.__cause__
    key = getattr(cause, "full_key", None) or getattr(error, "full_key", None)
    if key and "is not in struct" in str(cause):
        return _unknown(str(key), name, overrides)
    absent = re.match(r"Could not override '([^']+)'. No match in the defaults list", str(error))
    if absent:
        group = absent[1]
        return f"{group}: not part of the default configuration; add it with +{group}=NAME"
    absent = re.match(r"Could not delete from config. '([^']+)' does not exist", str(error))
    if absent:
        siblings = _siblings(absent[1], _composed(name, overrides)[0])
        return f"{absent[1]}: nothing to remove{nearest(absent[1].rpartition('.')[2], siblings)}"
    packaged = re.match(
        r"In '(experiment/[^']+)': Could not override '[^']*@experiment\b", str(error)
    )
    if packaged:
        return f"{packaged[1]}: the first line of that file must be '# @package _global_'"
    place = f"{key}: " if key else ""
    detail = f" ({first_line(cause)})" if cause else ""
    return f"{place}{first_line(error)}{detail}; the overrides were: {' '.join(overrides)}"


def _unknown(key: str, name: str, overrides: list[str]) -> str:
    composed, choices = _composed(name, overrides)
    parent, _, last = key.rpartition(".")
    group, _, inside = key.partition(".")
    siblings, given = _siblings(key, composed), _given(key, overrides)
    leaves: Any = OmegaConf.to_container(composed, resolve=False)
    elsewhere = [path for path in flatten(leaves) if path.endswith(f".{last}")]
    left_out = _left_out(parent, composed)
    others = _choices_with(group, inside) if group in choices else []
    if last in left_out:
        hint = f"; its file leaves this option out: write +{key}={given or '...'}"
    elif others:
        hint = (
            f"; {group}={choices[group]} has no {inside}, it is an option of "
            f"{group}={', '.join(others)}"
        )
    elif elsewhere:
        hint = f"; did you mean {' or '.join(elsewhere)}?"
    else:
        hint = nearest(last, [*siblings, *left_out])
    says = f" (given {given})" if given is not None else ""
    names = ", ".join([*siblings, *left_out]) or ("no option" if group in choices else "")
    return f"{key}: unknown key{says}{hint}{f' (known: {names})' if names else ''}"


def _given(key: str, overrides: list[str]) -> str | None:
    prefix = f"{key}="
    given = [o.lstrip("+")[len(prefix) :] for o in overrides if o.lstrip("+").startswith(prefix)]
    return given[-1] if given else None


def _left_out(key: str, composed: DictConfig) -> list[str]:
    """Return the options of the component at ``key`` that its file does not give."""
    node: Any = OmegaConf.select(composed, key) if key else None
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target is None:
        return []
    try:
        options = options_of(f"{key}._target_", target)
    except ConfigError:
        return []  # told where the component is checked
    supplied = SUPPLIED_BY_THE_RUN.get(key, ())
    return [option for option in options if option not in node and option not in supplied]


def _choices_with(group: str, key: str) -> list[str]:
    """Return the choices of a group, of those that come with pai, whose file has ``key``."""
    found = []
    for file in sorted((config_folder() / group).glob("*.yaml")):
        node: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        if any(below(path, (key,)) for path in flatten(node)):
            found.append(file.stem)
    return found


def _siblings(key: str, composed: DictConfig) -> list[str]:
    """Return the keys that exist beside ``key``."""
    node: Any = composed
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, DictConfig) else None
    found = list(node) if isinstance(node, DictConfig) else []
    return [str(item) for item in found if not str(item).startswith("_")]


def _composed(name: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """Return the configuration of the choices alone, and these.

    Both are empty if one of them is at fault itself.
    """
    kept = (*GROUPS, "experiment", "hydra.searchpath")
    choices = [text for text in overrides if text.split("=")[0].lstrip("+") in kept]
    try:
        composed = compose(name, overrides=choices, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError, OSError, *INSIDE_HYDRA):
        return DictConfig({}), {}
    chosen = composed.hydra.runtime.choices
    with open_dict(composed):
        del composed["hydra"]
    return composed, {group: str(chosen[group]) for group in GROUPS if group in chosen}
