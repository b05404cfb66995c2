"""What a configuration may make Hydra do: settings of ``hydra`` that run code are refused.

Components of a run are built by :mod:`pai.components`, if :func:`distrust` has nothing against it.
Hydra itself builds callbacks, logging handlers and what is nested in launchers and sweepers from
the configuration as well, sets environment variables and hands shell commands to a cluster: a YAML
file from a stranger could use each of them to run a program.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pai.errors import ConfigError, nearest
from pai.paths import config_folder

TRUST_VARIABLE = "PAI_TRUSTED_PACKAGES"
_BUILT_BY_HYDRA = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")
_PLUGINS = ("launcher._target_", "sweeper._target_")  # Hydra takes only plugins that are installed
_COMMANDS = (
    "setup",
    "python",
    "srun_args",
    "additional_parameters",
    "runtime_env",
    "stop_cluster",
)
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_VARIABLES = (
    "OMP_",
    "MKL_",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_",
    "GLOO_",
    "WANDB_MODE",
    "WANDB_PROJECT",
)


def trusted_packages() -> set[str]:
    """Return ``pai`` and the packages that the user trusts (``PAI_TRUSTED_PACKAGES``)."""
    named = (package.strip() for package in os.environ.get(TRUST_VARIABLE, "").split(","))
    return {"pai", *filter(None, named)}


@functools.cache
def own_components() -> frozenset[str]:
    """Return the dotted paths of ``pai`` that may be named: those that its own ``conf/`` names."""
    texts = [path.read_text() for path in config_folder().rglob("*.yaml")]
    return frozenset(re.findall(r"\b_target_: *(pai\.[\w.]+)", "\n".join(texts)))


def distrust(path: Any, also: tuple[str, ...] = ()) -> str:
    """Return why a configuration may not name the dotted ``path``, or an empty string.

    Of ``pai`` it may name components, not other functions, which could write files. Packages that
    the user trusts, and ``also``, are trusted as a whole.
    """
    package = path.split(".")[0] if isinstance(path, str) else None
    if package not in {*trusted_packages(), *also}:
        return (
            f"is not in a trusted package ({', '.join(sorted(trusted_packages()))}); to trust "
            f"another, name it in the environment variable {TRUST_VARIABLE}"
        )
    if package == "pai" and path not in own_components():
        known = own_components()
        return f"is no component of pai, which are those that its conf/ names{nearest(path, known)}"
    return ""


def check_search_path(value: str) -> None:
    """Raise :class:`ConfigError` if ``hydra.searchpath`` names a package: Hydra would import it."""
    scheme = re.search(r"(?<![\w/])(?!file:)\w+://", value)
    if scheme:
        raise ConfigError(
            f"hydra.searchpath: {scheme[0]} is not for folders; use file:///FOLDER or --config-dir"
        )


def hydra_faults(node: Mapping[str, Any]) -> list[str]:
    """Return what in the (unresolved) node ``hydra`` could run code, one phrase each."""
    faults = []
    for part in _BUILT_BY_HYDRA:
        for path, key, value in _leaves(node.get(part) or {}, part):
            reason = _reason(part, path, key, value)
            if reason:
                faults.append(f"hydra.{path}: {value!r} {reason}")
    for name in (node.get("job") or {}).get("env_set") or {}:
        if not str(name).startswith(_VARIABLES):
            faults.append(
                f"hydra.job.env_set.{name}: set it in your shell; a configuration may set only "
                f"{', '.join(_VARIABLES)}"
            )
    return faults


def _reason(part: str, path: str, key: str, value: Any) -> str:
    """Return why a setting is refused, or an empty string."""
    in_logging = part.endswith("logging")
    if key == "_target_" and path not in _PLUGINS:
        return distrust(value)
    if in_logging and key == "()":
        return "would be called; use class with a handler of Python's logging"
    if in_logging and key == "class":
        return distrust(value, also=("logging", "colorlog"))
    if in_logging and str(value).startswith("ext://") and value not in _STREAMS:
        return f"is not one of {', '.join(_STREAMS)}"
    named = path.split(".")
    if part == "launcher" and value not in (None, [], {}) and not set(named).isdisjoint(_COMMANDS):
        launcher = "submitit" if "ray" not in named else "ray"
        if launcher not in trusted_packages():
            return f"runs a command; to allow it, name {launcher} in {TRUST_VARIABLE}"
    return ""


def _leaves(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Yield dotted path, last key and value of everything below ``node`` that is no container."""
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        if isinstance(value, Mapping | list) and value:
            yield from _leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", str(key), value
