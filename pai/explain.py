"""Why a configuration could not be composed, in one line."""

import re
from typing import Any

from hydra import compose
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from yaml import YAMLError

from pai.errors import first_line, nearest
from pai.identity import flatten
from pai.schema import GROUPS

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
        siblings = _siblings(absent[1], _composed(name, overrides))
        return f"{absent[1]}: nothing to remove{nearest(absent[1].rpartition('.')[2], siblings)}"
    place = f"{key}: " if key else ""
    detail = f" ({first_line(cause)})" if cause else ""
    return f"{place}{first_line(error)}{detail}; the overrides were: {' '.join(overrides)}"


def _unknown(key: str, name: str, overrides: list[str]) -> str:
    composed, last = _composed(name, overrides), key.rpartition(".")[2]
    siblings = _siblings(key, composed)
    leaves: Any = OmegaConf.to_container(composed, resolve=False)
    elsewhere = [path for path in flatten(leaves) if path.endswith(f".{last}")]
    hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(last, siblings)
    prefix = f"{key}="
    given = [o.lstrip("+")[len(prefix) :] for o in overrides if o.lstrip("+").startswith(prefix)]
    says = f" (given {given[-1]})" if given else ""
    return f"{key}: unknown key{says}{hint} (known: {', '.join(siblings)})"


def _siblings(key: str, composed: DictConfig) -> list[str]:
    """Return the keys that exist beside ``key``."""
    node: Any = composed
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, DictConfig) else None
    found = list(node) if isinstance(node, DictConfig) else []
    return [str(item) for item in found if not str(item).startswith("_")]


def _composed(name: str, overrides: list[str]) -> DictConfig:
    """Return the configuration of the choices alone; empty if one of them is at fault itself."""
    choices = [text for text in overrides if text.split("=")[0].lstrip("+") in GROUPS]
    try:
        return compose(name, overrides=choices)
    except (HydraException, YAMLError, OSError, *INSIDE_HYDRA):
        return DictConfig({})
