"""Weights & Biases: offline unless the user is logged in or asks for online; never a prompt."""

import logging
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from pai.tracking.base import RunLabels, Session

if TYPE_CHECKING:
    from wandb import Run

_BINS = 64
_MODES = ("online", "offline", "disabled", "dryrun", "run", "shared")  # W&B's own
_GROUPS = ("dataset", "model", "scorer", "warmup", "schedule")  # axes of parallel coordinates
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbTracker:
    """Logs to W&B; its files are in ``<run directory>/wandb``.

    ``mode="auto"`` respects ``WANDB_MODE`` and is otherwise online exactly if credentials are
    there. An online run whose server does not answer within ``init_timeout_s`` goes on offline;
    ``wandb sync`` uploads it later. A run that is continued in its directory continues the same W&B
    run, whose id is in ``wandb/run_id``.
    """

    project: str
    entity: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"
    group: str | None = None
    tags: Sequence[str] = ()
    init_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if self.init_timeout_s <= 0:
            raise ValueError(f"init_timeout_s must be positive, got {self.init_timeout_s}")
        chosen = os.environ.get("WANDB_MODE")
        if chosen is not None and chosen not in _MODES:  # W&B would refuse it when the run starts
            raise ValueError(
                f"the environment variable WANDB_MODE is {chosen!r}; set it to online, offline or "
                f"disabled, or unset it"
            )

    @contextmanager
    def session(
        self, config: Mapping[str, Any], labels: RunLabels, run_dir: Path
    ) -> Iterator[Session]:
        """Open a W&B run; it is finished, or marked as failed, when the block ends."""
        run = self._start({**config, "choices": dict(labels.choices)}, labels, run_dir)
        session = _UntilItFails(_WandbSession(run))
        exit_code = 1
        try:  # not `with run`: W&B would print the traceback, which belongs into the log file
            run.define_metric("epoch", summary="max")
            run.define_metric("train/*", step_metric="epoch", summary="last")
            run.define_metric("val/*", step_metric="epoch", summary="last")
            run.define_metric("val/accuracy", step_metric="epoch", summary="max,last")
            run.define_metric("val/loss", step_metric="epoch", summary="min,last")
            run.define_metric("lr", step_metric="epoch", summary="last")
            yield session
            exit_code = 0
        finally:
            session.attempt(run.finish, exit_code=exit_code)

    def _start(self, config: dict[str, Any], labels: RunLabels, run_dir: Path) -> "Run":
        from wandb.errors import CommError

        wandb = _silent_wandb()
        mode = self._mode()
        run_id = None if mode == "disabled" else _run_id(run_dir)

        def init(mode: Literal["online", "offline", "disabled"]) -> "Run":
            return wandb.init(
                project=self.project,
                entity=self.entity,
                mode=mode,
                dir=run_dir,
                config=config,
                id=run_id,
                resume="allow" if mode == "online" else None,
                name=labels.title or labels.name,
                notes=labels.name,
                group=self.group or labels.group,
                job_type=labels.job_type,
                tags=list(dict.fromkeys([*self.tags, *labels.tags])),
                settings=wandb.Settings(init_timeout=self.init_timeout_s, silent=True),
                reinit="create_new",
            )

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # W&B's own, from its dependencies
            if mode != "online":
                return init(mode)
            try:
                return init("online")
            except CommError as error:
                _log.warning("W&B does not answer (%s): going on offline", error)
                wandb.teardown()  # else the id is still taken by the run that did not start
                _silent_wandb()
                return init("offline")

    def _mode(self) -> Literal["online", "offline", "disabled"]:
        wandb = _silent_wandb()
        if self.mode != "auto":
            return self.mode
        chosen = os.environ.get("WANDB_MODE")
        if chosen == "online":
            return "online"
        if chosen == "disabled":
            return "disabled"
        if chosen in ("offline", "dryrun"):
            return "offline"
        return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _run_id(run_dir: Path) -> str:
    """Return the id of the W&B run of this directory, which is made once.

    Under ``wandb agent`` W&B chooses it.
    """
    if chosen := os.environ.get("WANDB_RUN_ID"):
        return chosen
    path = run_dir / "wandb" / "run_id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".run_id.{secrets.token_hex(4)}.tmp")
        new.write_text(secrets.token_hex(4))
        new.replace(path)
    return path.read_text().strip()


def _silent_wandb() -> ModuleType:
    """Import W&B; unless it is silent from the start, a login prints and waits for the server."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


class _UntilItFails:
    """Passes everything on until W&B fails (its process is killed, its disk is full).

    That costs the tracking, not the run: the record has everything that is logged.
    """

    def __init__(self, session: "_WandbSession") -> None:
        self._session = session
        self._works = True

    def attempt(self, action: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Do it if W&B still works; a failure is told once."""
        if not self._works:
            return
        try:
            action(*arguments, **options)
        except Exception as error:  # noqa: BLE001  (told; no reason to stop)
            self._works = False
            _log.warning(
                "W&B has failed (%s: %s); the run goes on without it, record.json has everything",
                type(error).__name__, error,
            )  # fmt: skip

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """See :class:`pai.tracking.base.Session`."""
        self.attempt(self._session.log_epoch, row)

    def log_scores(self, scores: Mapping[str, Tensor]) -> None:
        """See :class:`pai.tracking.base.Session`."""
        self.attempt(self._session.log_scores, scores)

    def log_mask(self, report: Mapping[str, Any], path: Path) -> None:
        """See :class:`pai.tracking.base.Session`."""
        self.attempt(self._session.log_mask, report, path)

    def log_result(self, record: Mapping[str, Any]) -> None:
        """See :class:`pai.tracking.base.Session`."""
        self.attempt(self._session.log_result, record)


class _WandbSession:
    def __init__(self, run: "Run") -> None:
        self._run = run

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Log ``train/...`` and ``val/...`` against the epoch."""
        values: dict[str, float] = {}
        for key, value in row.items():
            part, _, metric = key.partition("_")
            values[f"{part}/{metric}" if metric else key] = value
        self._run.log(values, step=int(row["epoch"]))  # a continued run goes on counting there

    def log_scores(self, scores: Mapping[str, Tensor]) -> None:
        """Log a histogram of ``log10 |score|`` over all weights, and one for each parameter."""
        import wandb

        flat = np.concatenate([_log_magnitudes(value) for value in scores.values()])
        parts = {"scores/all": flat}
        parts |= {f"scores/{name}": _log_magnitudes(value) for name, value in scores.items()}
        self._run.log(
            {
                key: wandb.Histogram(np_histogram=np.histogram(values, bins=_BINS))
                for key, values in parts.items()
                if len(values)
            },
            step=0,
        )

    def log_mask(self, report: Mapping[str, Any], path: Path) -> None:
        """Log the per-layer table and the mask's file as an artifact."""
        import wandb

        columns: list[str | int] = ["name", "total", "kept", "density", "effective_kept"]
        rows: Any = [[layer[key] for key in columns] for layer in report["layers"]]
        self._run.log({"mask/layers": wandb.Table(columns=columns, data=rows)}, step=0)
        artifact = wandb.Artifact(f"mask-{self._run.id}", type="mask")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def log_result(self, record: Mapping[str, Any]) -> None:
        """Put the numbers of the record into the run's summary."""
        summary = dict(record["metrics"])
        mask = record["mask"]
        summary |= {
            f"mask/{key}": mask[key]
            for key in (
                "sparsity",
                "sparsity_all_parameters",
                "effective_sparsity",
                "kept",
                "prunable",
                "sha256",
            )
        }
        summary["mask/collapsed_layers"] = len(mask["collapsed_layers"])
        config, choices = record["config"], record["choices"]
        summary |= {group: choices[group] for group in _GROUPS if group in choices}
        summary |= {"sparsity": config["sparsity"], "seed": config["seed"]}
        summary |= {f"{part}_s": record["timing_s"].get(part) for part in ("score", "train")}
        summary |= {f"time_s/{key}": value for key, value in record["timing_s"].items()}
        summary |= {f"cost/{key}": value for key, value in (record["cost"] or {}).items()}
        scoring, before = record["scoring"] or {}, record["baseline"] or {}
        summary |= {f"zero_scores/{key}": n for key, n in scoring.get("zero_scores", {}).items()}
        summary |= {f"baseline/{k}": n for k, n in before.items() if isinstance(n, int | float)}
        summary["score_cached"] = scoring.get("cached")  # then score_s is how long reading took
        summary["peak_memory_gib"] = record["peak_memory_gib"]
        self._run.summary.update(summary)


def _log_magnitudes(values: Tensor) -> Any:
    magnitudes = values.detach().double().abs().flatten().cpu().numpy()
    return np.log10(magnitudes[magnitudes > 0])
