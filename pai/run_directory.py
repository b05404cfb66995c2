"""The directory of a run before anything is done there: what it holds, and if it can be had."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pai.errors import ConfigError
from pai.identity import IGNORED, below, completed, flatten
from pai.output import (
    CHECKPOINT_FILE,
    MASK_FILE,
    MODEL_FILE,
    ROUND_FILES,
    ROUNDS_FILE,
    SCORES_FILE,
)
from pai.records import HISTOGRAM_FILE, read_run

_MAY_CHANGE = tuple(key for key in IGNORED if key != "device")  # when an unfinished run goes on
_WRITTEN = (
    CHECKPOINT_FILE, ROUNDS_FILE, ROUND_FILES, MASK_FILE, MODEL_FILE, SCORES_FILE, HISTOGRAM_FILE,
)  # fmt: skip


def directory_setting(*, multirun: bool) -> str:
    """Return the name of the setting that chooses the run directory."""
    return "hydra.sweep.dir" if multirun else "hydra.run.dir"


def check_run_directory(
    run_dir: Path, config: Mapping[str, Any], setting: str = "hydra.run.dir"
) -> dict[str, Any] | None:
    """Return the record of an earlier run of the same configuration in ``run_dir``, if any.

    A run writes its record before any other file, so files of such names without a record are
    somebody else's.

    Raises:
        ConfigError: the directory holds a run with another configuration (what only changes how
            fast it computes and where it is logged aside), or no run but files that this one would
            overwrite or remove; names ``setting``, which has chosen it.
    """
    try:
        parent = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"{setting}: {run_dir} cannot be made: {error.strerror}") from error
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{setting}: {run_dir} cannot be made: {parent} is no writable folder")
    try:
        record = read_run(run_dir)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}; choose another directory") from error
    except OSError as error:  # a folder that may not be entered
        raise ConfigError(f"{setting}: {run_dir}: {error.strerror}") from error
    if record is None:
        for path in _written(run_dir):
            raise ConfigError(
                f"{setting}: {run_dir} holds {path.name} but no record of a run, and a "
                f"run would overwrite or remove it; choose another directory, or move it"
            )
        return None
    for path in _written(run_dir):
        if path.is_dir():
            raise ConfigError(
                f"{setting}: {path} is a folder, and the run there would write a file; choose "
                f"another directory, or move it"
            )
    stored, wanted = flatten(completed(record["config"])), flatten(config)
    for key in sorted({*stored, *wanted}):
        if stored.get(key) != wanted.get(key) and not below(key, _MAY_CHANGE):
            raise ConfigError(
                f"{setting}: {run_dir} holds a run with {key}={stored.get(key, '(not there)')}, "
                f"not {wanted.get(key, '(not there)')}; choose another directory, or remove this "
                f"one"
            )
    return record


def _written(run_dir: Path) -> Iterator[Path]:
    """Yield what is in ``run_dir`` under the names of files that a run writes or removes."""
    for name in _WRITTEN:
        yield from sorted(run_dir.glob(name))
