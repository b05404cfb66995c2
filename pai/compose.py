"""Composing the jobs of a command line with Hydra, and saying in one line what is wrong with it."""

import argparse
import functools
import itertools
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pai.errors import ConfigError, first_line
from pai.explain import explain
from pai.paths import config_folder
from pai.schema import GROUPS
from pai.trust import check_search_path, hydra_faults

_FAULTS = (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError)
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
        extra = Path(arguments.config_dir).expanduser().resolve()
        if not extra.is_dir():
            raise ConfigError(f"--config-dir: {arguments.config_dir} is not a folder")
        for file in sorted(extra.rglob("*.yaml")):
            own = folder / file.relative_to(extra)
            if own.exists() and own.read_bytes() != file.read_bytes():  # Hydra would take `own`
                raise ConfigError(f"--config-dir: {file} is named like a file of pai; rename it")
        overrides.append(f"hydra.searchpath=[{quoted(f'file://{extra}')}]")
    name = arguments.config_name or "config"
    if not folder.is_dir():
        raise ConfigError(f"--config-path: {arguments.config_path} is not a folder")
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
    if isinstance(settings, dict) and settings.get("searchpath"):
        check_search_path(str(settings["searchpath"]))


def compose_jobs(arguments: argparse.Namespace) -> list[Job]:
    """Return the jobs of a parsed command line, in the order in which Hydra runs them.

    Sets ``arguments.multirun`` if the configuration asks for it (``hydra.mode``), and
    ``arguments.searches`` if a sweeper chooses the jobs as it goes. Sweeps over continuous ranges,
    which only such sweepers know, are left out of the check.

    Raises:
        ConfigError: the command line cannot be composed; the key and the nearest choice are named.
    """
    with opened(arguments) as (name, overrides):
        parsed = _parse(overrides)
        _check_choices(parsed)
        fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
        composed = _compose(name, fixed)
        _check_hydra(composed)  # of the sweep itself: jobs can override what is refused here
        base = composed.hydra
        arguments.multirun = arguments.multirun or base.mode == RunMode.MULTIRUN
        _check_sweeps(parsed, multirun=arguments.multirun)
        arguments.searches = not base.sweeper._target_.endswith(".BasicSweeper")
        if not arguments.searches:
            _check_discrete(parsed)
        params = base.sweeper.get("params") or {}
        if params and not arguments.multirun:
            raise ConfigError(
                f"hydra.sweeper.params: this configuration sweeps over {', '.join(params)}; add -m"
            )
        if not arguments.multirun:
            return [_job(composed, name, fixed, multirun=False)]
        parsed = _parse([f"{key}={value}" for key, value in params.items()]) + parsed
        axes = {override.get_key_element(): _values(override) for override in parsed}
        composer = _Composer(name)
        jobs = []
        for number, combination in enumerate(itertools.product(*axes.values())):
            chosen = list(filter(None, combination))
            numbers = [f"hydra.job.num={number}", f"hydra.job.id={number}"]
            composed = composer.compose(chosen, numbers)
            jobs.append(_job(composed, name, [*chosen, *numbers], multirun=True))
        return jobs


class _Composer:
    """Composes the jobs of a sweep: one that differs only in numbers, quickly."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest: list[str] | None = None
        self._composed: DictConfig = OmegaConf.create()
        self._parsed = functools.cache(lambda text: _parse([text])[0])

    def compose(self, chosen: list[str], numbers: list[str]) -> DictConfig:
        """Return the composed configuration; the next call may change it."""
        parsed = [self._parsed(text) for text in chosen]
        values = [override for override in parsed if _sets_a_number(override)]
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


def _sets_a_number(override: Override) -> bool:
    return (
        override.type == OverrideType.CHANGE
        and override.package is None
        and not override.is_hydra_override()
        and type(override.value()) in (int, float)
    )


def _parse(overrides: list[str]) -> list[Override]:
    parsed = []
    for override in overrides:
        try:
            parsed += OverridesParser.create(
                GlobalHydra.instance().config_loader()
            ).parse_overrides([override])
        except (OverrideParseException, HydraException) as error:
            raise ConfigError(
                f"{override!r} cannot be parsed; overrides look like key=value, with quotes "
                f"around values that contain spaces, commas or ~ ({first_line(error)})"
            ) from error
    return parsed


def _check_sweeps(overrides: list[Override], *, multirun: bool) -> None:
    idle, used = ("run", "sweep") if multirun else ("sweep", "run")
    given = {override.key_or_group for override in overrides}
    if f"hydra.{idle}.dir" in given and f"hydra.{used}.dir" not in given:
        says = "with" if multirun else "without"
        raise ConfigError(f"hydra.{idle}.dir: has no effect {says} -m; use hydra.{used}.dir")
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            raise ConfigError(
                f"{override.get_key_element()}: {override.get_value_string()!r} is several values; "
                f"add -m to sweep over them, or brackets to make them a list"
            )


def _check_choices(overrides: list[Override]) -> None:
    for override in overrides:
        if override.key_or_group == "hydra.searchpath":
            check_search_path(override.get_value_string())
        chosen = override.key_or_group in GROUPS and not override.is_delete()
        if chosen and override.value() is None:
            raise ConfigError(f"{override.key_or_group}: null is not a choice; a run needs one")
        named = chosen or override.key_or_group.startswith(("experiment", "hydra/"))
        value = override.value() if named and not override.is_sweep_override() else None
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise ConfigError(
                f"{override.key_or_group}: {override.get_value_string()} is not a choice; choices "
                f"are names"
            )


def _check_discrete(overrides: list[Override]) -> None:
    for override in overrides:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.get_key_element()}: {override.get_value_string()!r} is a continuous "
                f"range; list the values, or choose a sweeper that searches"
            )


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [f"{override.get_key_element()}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        return [""]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _compose(name: str, overrides: list[str]) -> DictConfig:
    try:
        return compose(name, overrides=overrides, return_hydra_config=True)
    except _FAULTS as error:
        raise ConfigError(explain(error, name, overrides)) from error


def _job(composed: DictConfig, name: str, overrides: list[str], *, multirun: bool) -> Job:
    _check_hydra(composed)
    try:
        sweep_dir = Path(composed.hydra.sweep.dir)
        if multirun:
            run_dir = sweep_dir / composed.hydra.sweep.subdir
        else:
            run_dir = Path(composed.hydra.run.dir)
        keys = [str(key) for key in composed if key != "hydra"]
        resolved: Any = OmegaConf.to_container(
            OmegaConf.masked_copy(composed, keys), resolve=True, throw_on_missing=True
        )
    except _FAULTS as error:
        raise ConfigError(explain(error, name, overrides)) from error
    key = os.environ.get("WANDB_API_KEY")
    if key and key in json.dumps([resolved, run_dir, sweep_dir, overrides], default=str):
        raise ConfigError(
            "the configuration contains the value of WANDB_API_KEY, which would stand in records "
            "and logs; leave it in the environment, W&B finds it there"
        )
    launcher = str(composed.hydra.runtime.choices.get("hydra/launcher"))
    return Job(resolved, run_dir, sweep_dir, tuple(overrides), launcher)


def _check_hydra(composed: DictConfig) -> None:
    """Refuse what would make Hydra run code that nobody trusts, before Hydra sees it; and ``~``."""
    for place in ("run", "sweep"):
        raw = str(composed.hydra[place]._get_node("dir"))
        if raw.startswith("~"):
            raise ConfigError(f"hydra.{place}.dir: {raw!r}: write the path without ~")
    node: Any = OmegaConf.to_container(composed.hydra, resolve=False)
    faults = hydra_faults(node)
    if faults:
        raise ConfigError("; ".join(faults))


def quoted(text: str) -> str:
    """Return ``text`` as a value in an override, whatever characters it has."""
    return QuotedString(text, Quote.single).with_quotes()
