"""What a tracker is."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class RunLabels:
    """How a run is called, which sweep it belongs to, which YAML each group came from.

    ``name`` is the overrides of the command line, ``title`` what people read.
    """

    name: str
    group: str | None
    job_type: str
    title: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


class Session(Protocol):
    """One tracked run."""

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Log the metrics of one epoch; ``row["epoch"]`` counts from 1."""

    def log_scores(self, scores: Mapping[str, Tensor]) -> None:
        """Log histograms of the scores the mask was selected from."""

    def log_mask(self, report: Mapping[str, Any], path: Path) -> None:
        """Log the mask's per-layer table and its file."""

    def log_result(self, record: Mapping[str, Any]) -> None:
        """Log the final metrics, counts and times."""


@runtime_checkable
class Tracker(Protocol):
    """Opens a session for one run; an exception inside the block marks the run as failed."""

    def session(
        self, config: Mapping[str, Any], labels: RunLabels, run_dir: Path
    ) -> AbstractContextManager[Session]:
        """Return the session as a context manager."""
