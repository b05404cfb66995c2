"""All records below some folders as one result set."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pai.errors import ConfigError, first_line
from pai.identity import IGNORED, completed, digest, value_at
from pai.records import FILE_NAME
from pai.reports.extra import require

if TYPE_CHECKING:
    import pandas as pd

NONE = "none"
_DENSE = "pai.scorers.dense.Dense"
_NOT_RUNS = ("wandb", ".hydra")
_NEEDED = {"status": str, "config": dict, "seed": int}
_SECTIONS = ("choices", "metrics", "timing_s", "environment", "scoring", "cost")
# Large parts stay in the database until they are asked for.
_HEADS = """
    SELECT path,
           CASE WHEN json_valid(content) AND json_type(content) = 'OBJECT'
                THEN json_merge_patch(content, '{"history": null, "mask": {"layers": null}}') END
    FROM files ORDER BY path
"""
_LAYERS = """
    SELECT path AS run_dir, generate_subscripts(layers, 1) - 1 AS position,
           unnest(layers, recursive := true)
    FROM (SELECT path, from_json(content -> '$.mask.layers', '[{
              "name": "VARCHAR", "total": "BIGINT", "kept": "BIGINT", "density": "DOUBLE",
              "effective_kept": "BIGINT"}]') AS layers
          FROM files WHERE json_valid(content))
    ORDER BY run_dir, position
"""


@dataclass(frozen=True)
class Run:
    """A run directory and its record, without the history and the per-layer table."""

    folder: Path
    record: dict[str, Any]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.record["seed"])

    def part(self, key: str) -> dict[str, Any]:
        """Return a section of the record; empty if the run did not get that far."""
        found = self.record.get(key)
        return found if isinstance(found, dict) else {}

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Where the run was at work: its last part, then earlier ones that were elsewhere."""
        earlier = self.record.get("earlier_environments")
        every = [self.part("environment"), *(earlier if isinstance(earlier, list) else ())]
        return [one for one in every if isinstance(one, dict) and one]

    def choice(self, group: str) -> str:
        """Return the name of the YAML file that ``group`` came from, or ``none``.

        A run that was started without choices (from Python) has the name of its component; a
        baseline that trains nothing is none, and one that trains is not, whatever it was made from.
        """
        chosen, node = self.part("choices").get(group), self.part("config").get(group)
        unclear = group == "baseline" and chosen in (None, NONE)
        if unclear and isinstance(node, dict) and "epochs" in node:
            chosen = NONE if node["epochs"] == 0 else None
        if chosen is None:
            target = node.get("_target_") if isinstance(node, dict) else None
            return str(target).rpartition(".")[2] if target else NONE
        return str(chosen)

    def value(self, key: str) -> Any:
        """Return what ``key`` is in this run: the choice of a group, or a dotted config value.

        A key that the configuration lacks is ``none``, as a group without a choice is.
        """
        node: Any = self.part("config")
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) or key in self.part("choices"):
            return self.choice(key)
        if node is None:
            return NONE
        return json.dumps(node) if isinstance(node, list) else node

    def metric(self, name: str) -> float | None:
        """Return a finite metric, or ``None``."""
        value = self.part("metrics").get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return float(value) if math.isfinite(value) else None

    @property
    def dense(self) -> bool:
        """Whether this is a reference that nothing is removed from, whatever sparsity is asked for.

        Not a run whose sparsity is so low that no weight was lost: that is one of its scorer.
        """
        target = value_at(self.part("config"), ("scorer", "_target_"))
        return not self.baseline and (self.choice("scorer") == NONE or target == _DENSE)

    @property
    def baseline(self) -> bool:
        """Whether the mask does not come from the untrained network."""
        return self.choice("baseline") != NONE


@dataclass(frozen=True)
class LeftOut:
    """A run that is in no table, and why."""

    folder: Path
    reason: str
    run: Run | None = None


@dataclass(frozen=True)
class Collection:
    """What :func:`collect` found: runs, and records that could not be read."""

    folders: tuple[Path, ...]
    runs: tuple[Run, ...]
    unreadable: tuple[LeftOut, ...]
    texts: tuple[tuple[str, str], ...]

    def frame(self) -> "pd.DataFrame":
        """Return one line per run, one column per dotted key of the record.

        Beside the record's own keys there are ``run_dir``; ``digest``, which runs of the same
        experiment share; and ``setting``, which they share for all seeds.
        """
        import pandas as pd

        rows = [
            {
                "run_dir": str(run.folder),
                "digest": digest(run.part("config")),
                "setting": digest(run.part("config"), (*IGNORED, "seed")),
                **run.record,
            }
            for run in self.runs
        ]
        return pd.json_normalize(rows)

    @cached_property
    def layers(self) -> "pd.DataFrame":
        """One line per run and layer: ``run_dir, position, name, total, kept, density, ...``."""
        return _query(self.texts, _LAYERS)

    @cached_property
    def layers_by_run(self) -> "dict[str, pd.DataFrame]":
        """The lines of ``layers`` of each run directory, in the order of the network."""
        return {str(run_dir): lines for run_dir, lines in self.layers.groupby("run_dir")}


def collect(*folders: Path) -> Collection:
    """Read every ``record.json`` below ``folders``.

    Nothing is dropped: a file that is no record is in ``unreadable``, with the reason. A run that
    two folders contain is read once.

    Raises:
        ConfigError: a folder is not there, or the extra ``reports`` is not installed.
    """
    require("duckdb", "pandas")
    texts, damaged = [], []
    places = {path.resolve(): path for path in _files(folders)}
    for path in sorted(places.values()):
        try:
            texts.append((str(path.parent), path.read_bytes().decode()))
        except (OSError, UnicodeDecodeError) as error:
            damaged.append(LeftOut(path.parent, f"unreadable: {error}"))
    runs = []
    heads = _query(texts, _HEADS).itertuples(index=False, name=None) if texts else ()
    for folder, head in heads:
        try:
            record = json.loads(head) if isinstance(head, str) else None
        except (ValueError, RecursionError) as error:  # numbers too long, nested too deeply
            damaged.append(LeftOut(Path(folder), f"unreadable: {first_line(error)}"))
            continue
        if record is None:
            damaged.append(LeftOut(Path(folder), f"unreadable: {FILE_NAME} is not a JSON object"))
        elif absent := [key for key, kind in _NEEDED.items() if type(record.get(key)) is not kind]:
            reason = f"no record of a run: no valid {', '.join(absent)}"
            damaged.append(LeftOut(Path(folder), reason))
        elif odd := [key for key in _SECTIONS if not isinstance(record.get(key), dict | None)]:
            reason = f"no record of a run: no valid {', '.join(odd)}"
            damaged.append(LeftOut(Path(folder), reason))
        else:
            runs.append(Run(Path(folder), record | {"config": completed(record["config"])}))
    return Collection(tuple(folders), tuple(runs), tuple(damaged), tuple(texts))


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: not a folder")
        for place, inner, names in os.walk(folder):
            inner[:] = [name for name in inner if name not in _NOT_RUNS]
            if FILE_NAME in names:
                yield Path(place) / FILE_NAME


def _query(texts: Iterable[tuple[str, str]], query: str) -> "pd.DataFrame":
    import duckdb
    import pandas as pd

    files = pd.DataFrame(list(texts), columns=["path", "content"], dtype="str")
    with duckdb.connect() as database:
        database.register("files", files)
        return database.execute(query).df()
