"""What a configuration may set below ``hydra``: all that is allowed is listed here.

Hydra builds callbacks, launchers, sweepers and logging from the configuration, sets environment
variables, writes files and hands commands to a cluster: a YAML file from a stranger could use each
of them to run a program. So it is checked twice before Hydra sees it, as it is written
(:func:`written_faults`) and with its interpolations resolved (:func:`settings_faults`).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pai.components import locate
from pai.console import obeyed
from pai.errors import ConfigError
from pai.launchers import MOST_THREADS, is_number_of_threads
from pai.logging_settings import logging_faults
from pai.trust import TRUST_VARIABLE, distrust, trusted_packages

BUILT = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")
"""The parts from which Hydra builds something, or Python's logging does."""
_GROUPS = (*BUILT, "run", "sweep", "job", "runtime", "overrides", "help", "hydra_help")
_TEXTS = (
    "hydra.run.dir", "hydra.sweep.dir", "hydra.runtime.output_dir", "hydra.job.name",
    "hydra.job.num", "hydra.job.id", "hydra.job.override_dirname", "pai_jobs_at_once:",
)  # fmt: skip
_TEXT = re.compile(r"\$\{(" + "|".join(map(re.escape, _TEXTS)) + r")\}")
_SUBMITIT = (
    "submitit_folder", "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb",
    "nodes", "name", "stderr_to_stdout",
)  # fmt: skip
_PLUGINS = "hydra_plugins.hydra_"
_LAUNCHERS: dict[str, tuple[str, tuple[str, ...]]] = {  # what runs its commands; other settings
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher": ("hydra", ()),
    f"{_PLUGINS}joblib_launcher.joblib_launcher.JoblibLauncher": ("joblib", (
        "n_jobs", "backend", "prefer", "require", "verbose", "timeout", "pre_dispatch",
        "batch_size", "temp_folder", "max_nbytes", "mmap_mode",
    )),
    f"{_PLUGINS}submitit_launcher.submitit_launcher.LocalLauncher": ("submitit", _SUBMITIT),
    f"{_PLUGINS}submitit_launcher.submitit_launcher.SlurmLauncher": ("submitit", (
        *_SUBMITIT, "partition", "qos", "comment", "constraint", "exclude", "gres", "cpus_per_gpu",
        "gpus_per_task", "mem_per_gpu", "mem_per_cpu", "account", "signal_delay_s",
        "max_num_timeout", "array_parallelism",
    )),
    f"{_PLUGINS}ray_launcher.ray_launcher.RayLauncher": ("ray", (
        "ray.init.address", "ray.init.num_cpus", "ray.init.num_gpus",
        "ray.init.object_store_memory", "ray.init.log_to_driver", "ray.remote.num_cpus",
        "ray.remote.num_gpus", "ray.remote.memory", "ray.remote.max_retries",
    )),
}  # fmt: skip
_OWN_RAY = (None, "local", "auto")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_VARIABLES = (
    *_THREADS, "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES",
    "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "GLOO_SOCKET_IFNAME",
    "WANDB_MODE", "WANDB_PROJECT",
)  # fmt: skip
_LONGEST = 200  # bytes of a file's name, which gets an ending


def written_faults(node: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the node ``hydra`` as it is written, one phrase each.

    An interpolation can become whole groups of settings, and other ones later on; so what Hydra
    builds may contain only those that are always a text or a number.
    """
    faults = []
    for part in _GROUPS:
        if not isinstance(node.get(part), Mapping):
            says = repr(node.get(part)) if node.get(part) != "???" else "nothing"
            faults.append(f"hydra.{part}: {says} stands where a group of settings belongs")
    for path, key, value in leaves(node, "hydra"):
        part = path.split(".")[1]
        if part in BUILT and path != f"hydra.{part}" and "${" in _TEXT.sub("", str(value)):
            allowed = ", ".join(_TEXTS)
            faults.append(f"{path}: {value!r}: write it out; interpolations here: {allowed}")
        if part not in BUILT and key == "_target_":
            faults.append(f"{path}: {value!r}: nothing is built here")
    return faults


def settings_faults(hydra: Mapping[str, Any], run_dir: Path) -> list[str]:
    """Return what is wrong with the resolved settings of a job in ``run_dir``, one phrase each.

    Args:
        hydra: the parts of :data:`BUILT`, ``output_subdir``, ``verbose``, ``job.name`` and
            ``job.env_set``.
        run_dir: where Hydra will let the job run.
    """
    return [
        *_callback_faults(hydra["callbacks"]),
        *_launcher_faults(hydra["launcher"]),
        *_sweeper_faults(hydra["sweeper"]),
        *logging_faults("hydra.job_logging", hydra["job_logging"], run_dir),
        *logging_faults("hydra.hydra_logging", hydra["hydra_logging"], None),
        *_variable_faults(hydra["job.env_set"]),
        *_name_faults("hydra.job.name", hydra["job.name"]),
        *_inside_faults("hydra.output_subdir", hydra["output_subdir"]),
        *_verbose_faults(hydra["verbose"]),
    ]


def directory_faults(key: str, value: str) -> list[str]:
    """Return what is wrong with a directory of runs."""
    if not value:
        return [f"{key}: is empty; name a folder (. is the current one)"]
    if value.startswith("~"):
        return [f"{key}: {value!r}: write the path without ~"]
    place = str(Path(value).absolute())
    return [f"{key}: {place!r} has a control character"] if obeyed(place) else []


def subdirectory_faults(value: str) -> list[str]:
    """Return what is wrong with the directory of a job in that of its sweep."""
    return _inside_faults("hydra.sweep.subdir", value)


def leaves(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Yield dotted path, last key and value of everything below ``node`` that is no container."""
    items: Any = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        if isinstance(value, Mapping | list) and value:
            yield from leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", str(key), value


def _callback_faults(node: Any) -> list[str]:
    faults = []
    for name, callback in node.items():
        if callback is not None and not (isinstance(callback, Mapping) and "_target_" in callback):
            faults.append(f"hydra.callbacks.{name}: {callback!r} is no node with a _target_")
    return faults + _nested_targets(node, "hydra.callbacks")


def _nested_targets(node: Any, part: str) -> list[str]:
    """Return the targets that nobody trusts; Hydra takes as a plugin only one that is installed."""
    faults = []
    for path, key, value in leaves(node, part):
        if key == "_target_" and path not in ("hydra.launcher._target_", "hydra.sweeper._target_"):
            faults += _target_faults(path, value)
    return faults


def _target_faults(key: str, path: Any) -> list[str]:
    try:
        locate(key, path)
    except ConfigError as error:
        return [str(error)]
    return []


def _launcher_faults(node: Mapping[str, Any]) -> list[str]:
    faults = [
        f"{path}: {value!r} has a control character, which would end a line of a script"
        for path, _, value in leaves(node, "hydra.launcher")
        if obeyed(f"{path}{value}")
    ]
    target = str(node.get("_target_"))
    if target not in _LAUNCHERS:
        reason = distrust(target)
        return faults + ([f"hydra.launcher._target_: {target!r} {reason}"] if reason else [])
    faults += _nested_targets(node, "hydra.launcher")
    package, known = _LAUNCHERS[target]
    if package in trusted_packages():
        return faults
    for path, _, value in leaves(node, "hydra.launcher"):
        key = path.removeprefix("hydra.launcher.")
        if key == "_target_" or value in (None, [], {}):
            continue
        foreign = key == "ray.init.address" and value not in _OWN_RAY
        if key not in known or foreign:
            faults.append(
                f"{path}: {value!r} could run a command; to allow it, name {package} in "
                f"{TRUST_VARIABLE} (allowed as it is: "
                f"{'local or auto' if foreign else ', '.join(known) or 'nothing'})"
            )
    return faults


def _sweeper_faults(node: Mapping[str, Any]) -> list[str]:
    called = node.get("custom_search_space")  # of Optuna's sweeper, a function
    faults = _target_faults("hydra.sweeper.custom_search_space", called) if called else []
    return faults + _nested_targets(node, "hydra.sweeper")


def _variable_faults(variables: Any) -> list[str]:
    if not isinstance(variables, Mapping):
        return [f"hydra.job.env_set: {variables!r} is no group of variables"]
    faults = []
    for name, value in variables.items():
        if name not in _VARIABLES:
            faults.append(
                f"hydra.job.env_set.{name}: set it in your shell; a configuration may set only "
                f"{', '.join(_VARIABLES)}"
            )
        elif name in _THREADS and not is_number_of_threads(str(value)):
            faults.append(
                f"hydra.job.env_set.{name}: {value!r} is no number from 1 to {MOST_THREADS}"
            )
        elif obeyed(str(value)):
            faults.append(f"hydra.job.env_set.{name}: {value!r} has a control character")
    return faults


def _name_faults(key: str, name: str) -> list[str]:
    plain = name not in ("", ".", "..") and "/" not in name and not obeyed(name)
    if plain and len(name.encode(errors="surrogateescape")) <= _LONGEST:
        return []
    return [f"{key}: {name!r} is not the name of a file (no /, at most {_LONGEST} bytes)"]


def _inside_faults(key: str, value: Any) -> list[str]:
    if value is None:
        return []
    path = Path(value)
    if path.is_absolute() or ".." in path.parts or obeyed(value):
        return [f"{key}: {value!r} is not a folder inside another one"]
    return []


def _verbose_faults(value: Any) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if isinstance(value, bool) or all(isinstance(name, str) for name in names):
        return []
    return [f"hydra.verbose: {value!r} should be true, false or names of loggers"]
