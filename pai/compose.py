"""Composing the jobs of a command line with Hydra, and saying in one line what is wrong with it."""

import argparse
import functools
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pai.console import KEY_VARIABLE
from pai.errors import ConfigError
from pai.explain import INSIDE_HYDRA, explain
from pai.hydra_settings import (
    BUILT,
    directory_faults,
    leaves,
    settings_faults,
    subdirectory_faults,
    written_faults,
)
from pai.overrides import (
    check_choices,
    check_discrete,
    check_sweeps,
    parse,
    quoted,
    sets_a_number,
    settings_of,
    sweep_of,
)
from pai.paths import config_folder
from pai.schema import GROUPS
from pai.trust import check_search_path, hidden_targets

_FAULTS = (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError)
_ALSO = ("output_subdir", "verbose", "job.name", "job.env_set")
SCHEMA_WARNING = r"\s*'hydra/launcher/"
"""Hydra's, about files in ``conf/hydra/launcher`` that are named like those of its plugins."""


@dataclass(frozen=True)
class Job:
    """One run: its resolved configuration, where it will be, what it is called."""

    config: dict[str, Any]
    run_dir: Path
    sweep_dir: Path
    overrides: tuple[str, ...]
    launcher: str

    @property
    def name(self) -> str:
        """The overrides without those of Hydra itself."""
        return ",".join(o for o in self.overrides if not o.startswith("hydra")) or "default"


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Let Hydra read the configuration folders of a command line in the block.

    Yields:
        The name of the primary configuration and the overrides.

    Raises:
        ConfigError: a folder is not there.
    """
    folder = Path(arguments.config_path or config_folder()).resolve()
    overrides = list(arguments.overrides)
    if arguments.config_dir is not None:
        extra = _at_home("--config-dir", arguments.config_dir).resolve()
        if not extra.is_dir():
            raise ConfigError(f"--config-dir: {arguments.config_dir} is not a folder")
        for file in sorted(extra.rglob("*.yaml")):
            own = folder / file.relative_to(extra)
            if own.exists() and own.read_bytes() != file.read_bytes():  # Hydra would take `own`
                raise ConfigError(f"--config-dir: {file} is named like a file of pai; rename it")
        overrides.append(f"hydra.searchpath=[{quoted(f'file://{extra}')}]")
    name = (arguments.config_name or "config").removesuffix(".yaml")
    if not folder.is_dir():
        raise ConfigError(f"--config-path: {arguments.config_path} is not a folder")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"--config-name: {name!r} leaves the folder; choose it by --config-path")
    if arguments.config_path is not None and (folder / f"{name}.yaml").exists():
        _check_primary(folder / f"{name}.yaml")
    with (
        initialize_config_dir(str(folder), version_base="1.3", job_name="pai"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=SCHEMA_WARNING)
        yield name, overrides


def _check_primary(path: Path) -> None:
    """Refuse a search path in the primary file before Hydra follows it."""
    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except _FAULTS as error:
        raise ConfigError(explain(error, path.stem, [])) from error
    settings = node.get("hydra") if isinstance(node, dict) else None
    if isinstance(settings, str):
        raise ConfigError(f"hydra: {settings!r} stands where a group of settings belongs")
    if isinstance(settings, dict) and settings.get("searchpath"):
        check_search_path(settings["searchpath"])


def compose_jobs(arguments: argparse.Namespace) -> list[Job]:
    """Return the jobs of a parsed command line, in the order in which Hydra runs them.

    Sets ``arguments.multirun`` if the configuration asks for it (``hydra.mode``), and
    ``arguments.searches`` if a sweeper chooses the jobs as it goes. Sweeps over continuous ranges,
    which only such sweepers know, are left out of the check.

    Raises:
        ConfigError: the command line cannot be composed; the key and the nearest choice are named.
    """
    with opened(arguments) as (name, overrides):
        parsed = parse(overrides)
        check_choices(parsed)
        fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
        composed = _compose(name, fixed)
        _check_written(composed)
        mode, sweeper = _sweeper(composed, name, fixed)
        arguments.multirun = arguments.multirun or mode == RunMode.MULTIRUN
        check_sweeps(parsed, composed, multirun=arguments.multirun)
        arguments.searches = not str(sweeper.get("_target_")).endswith(".BasicSweeper")
        if not arguments.searches:
            check_discrete(parsed)
        params = sweeper.get("params") or {}
        if params and not arguments.multirun:
            raise ConfigError(
                f"hydra.sweeper.params: this configuration sweeps over {', '.join(params)}; add -m"
            )
        if not arguments.multirun:
            return [_job(composed, name, fixed, multirun=False)]
        _check_sweep(composed, name, fixed)
        swept = parse([sweep_of(key, value, composed) for key, value in params.items()])
        check_choices(swept)
        parsed = swept + parsed
        axes = {override.get_key_element(): settings_of(override) for override in parsed}
        composer = _Composer(name)
        jobs = []
        for number, combination in enumerate(itertools.product(*axes.values())):
            chosen = list(filter(None, combination))
            numbers = [f"hydra.job.num={number}", f"hydra.job.id={number}"]
            composed = composer.compose(chosen, numbers)
            _check_written(composed)
            jobs.append(_job(composed, name, [*chosen, *numbers], multirun=True))
        return jobs


class _Composer:
    """Composes the jobs of a sweep: one that differs only in numbers, quickly."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest: list[str] | None = None
        self._composed: DictConfig = OmegaConf.create()
        self._parsed = functools.cache(lambda text: parse([text])[0])

    def compose(self, chosen: list[str], numbers: list[str]) -> DictConfig:
        """Return the composed configuration; the next call may change it."""
        parsed = [self._parsed(text) for text in chosen]
        values = [override for override in parsed if sets_a_number(override)]
        rest = [str(o.key_or_group if o in values else o.input_line) for o in parsed]
        if rest != self._rest:
            self._composed, self._rest = _compose(self._name, [*chosen, *numbers]), rest
            return self._composed
        with open_dict(self._composed.hydra):
            for override in values:
                OmegaConf.update(self._composed, override.key_or_group, override.value())
            for text in numbers:
                key, _, value = text.partition("=")
                OmegaConf.update(self._composed, key, int(value))
            job = self._composed.hydra.job
            tasks = [override for override in parsed if not override.is_hydra_override()]
            self._composed.hydra.overrides.task = [override.input_line for override in tasks]
            job.override_dirname = get_overrides_dirname(tasks, **job.config.override_dirname)
        return self._composed


def _compose(name: str, overrides: list[str]) -> DictConfig:
    with _explained(name, overrides):
        return compose(name, overrides=overrides, return_hydra_config=True)


@contextmanager
def _explained(name: str, overrides: list[str]) -> Iterator[None]:
    """Raise :class:`ConfigError` for what Hydra and OmegaConf raise in the block."""
    try:
        yield
    except (*_FAULTS, *INSIDE_HYDRA) as error:
        raise ConfigError(explain(error, name, overrides)) from error


def _check_written(composed: DictConfig) -> None:
    """Refuse interpolations where Hydra builds something, before anything is resolved."""
    if OmegaConf.is_interpolation(composed, "hydra"):
        raise ConfigError("hydra: an interpolation stands where a group of settings belongs")
    node: Any = OmegaConf.to_container(composed.hydra, resolve=False)
    _refuse(written_faults(node))


def _sweeper(
    composed: DictConfig, name: str, overrides: list[str]
) -> tuple[RunMode | None, Mapping[str, Any]]:
    with _explained(name, overrides):
        sweeper: Any = OmegaConf.to_container(composed.hydra.sweeper, resolve=True)
        mode: RunMode | None = composed.hydra.mode
    if not isinstance(sweeper.get("params") or {}, dict):
        raise ConfigError(f"hydra.sweeper.params: {sweeper['params']!r} is no group of overrides")
    return mode, sweeper


def _check_sweep(composed: DictConfig, name: str, overrides: list[str]) -> None:
    """Check the sweep itself, whose settings the jobs may override."""
    with open_dict(composed.hydra):
        composed.hydra.job.num, composed.hydra.job.id = 0, "0"
    with _explained(name, overrides):
        sweep_dir = composed.hydra.sweep.dir
    _refuse(directory_faults("hydra.sweep.dir", sweep_dir))
    hydra = _settings(composed, Path(sweep_dir, "job"), name, overrides)
    _check_settings([hydra], hydra, Path(sweep_dir, "job"))


def _job(composed: DictConfig, name: str, overrides: list[str], *, multirun: bool) -> Job:
    with _explained(name, overrides):
        sweep_dir = composed.hydra.sweep.dir if multirun else composed.hydra.run.dir
        subdir = composed.hydra.sweep.subdir if multirun else ""
        keys = [str(key) for key in composed if key != "hydra"]
        resolved: Any = OmegaConf.to_container(
            OmegaConf.masked_copy(composed, keys), resolve=True, throw_on_missing=True
        )
        called = composed.hydra.job.override_dirname
    _refuse(directory_faults("hydra.sweep.dir" if multirun else "hydra.run.dir", sweep_dir))
    _refuse(subdirectory_faults(subdir))
    run_dir = Path(sweep_dir, subdir)
    hydra = _settings(composed, run_dir, name, overrides)
    _check_settings([resolved, hydra, overrides, called, str(run_dir)], hydra, run_dir)
    _refuse(fault for group in GROUPS for fault in hidden_targets(group, resolved.get(group)))
    for path, key, value in leaves(resolved, ""):
        if key == "cache_dir" and isinstance(value, str):
            _at_home(path.lstrip("."), value)
    launcher = str(composed.hydra.runtime.choices.get("hydra/launcher"))
    return Job(resolved, run_dir, Path(sweep_dir), tuple(overrides), launcher)


def _at_home(key: str, path: str) -> Path:
    """Return ``path`` with the home directory in the place of a ``~`` at its beginning."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}: {path!r}: there is no such home directory") from error


def _settings(
    composed: DictConfig, run_dir: Path, name: str, overrides: list[str]
) -> dict[str, Any]:
    """Return the settings of Hydra that matter, resolved for a job in ``run_dir``."""
    hydra = composed.hydra
    with _explained(name, overrides), read_write(hydra), open_dict(hydra):
        hydra.runtime.output_dir = str(run_dir.absolute())
        return {
            key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
            for key in (*BUILT, *_ALSO)
            for node in [OmegaConf.select(hydra, key)]
        }


def _check_settings(searched: list[Any], hydra: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse W&B's key anywhere in ``searched``, then what is wrong in the resolved settings."""
    key = os.environ.get(KEY_VARIABLE)
    if key and any(key in f"{path}{value}" for path, _, value in leaves(searched, "")):
        raise ConfigError(
            f"the configuration contains the value of {KEY_VARIABLE}, which would stand in records "
            "and logs; leave it in the environment, W&B finds it there"
        )
    _refuse(settings_faults(hydra, run_dir))


def _refuse(faults: Iterable[str]) -> None:
    if found := "; ".join(faults):
        raise ConfigError(found)
