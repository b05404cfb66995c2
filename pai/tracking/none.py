"""No tracker: the run directory is the only log."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pai.tracking.base import RunLabels, Session


class _Silence:
    def log_epoch(self, row: Mapping[str, float]) -> None:
        pass

    def log_scores(self, scores: Mapping[str, Tensor]) -> None:
        pass

    def log_mask(self, report: Mapping[str, Any], path: Path) -> None:
        pass

    def log_result(self, record: Mapping[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class NoTracker:
    """Logs nothing."""

    @contextmanager
    def session(
        self, config: Mapping[str, Any], labels: RunLabels, run_dir: Path
    ) -> Iterator[Session]:
        """Yield a session that ignores what it is told."""
        yield _Silence()
