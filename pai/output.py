"""What a run leaves behind: the files of its directory, what is tracked and what is logged."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pai.clock import Clock
from pai.environment import note_peak_memory
from pai.errors import ConfigError, RunError
from pai.flops import forward_cost
from pai.histogram import score_histogram
from pai.masking.mask import load_mask, mask_report, mask_sha256, save_mask
from pai.masking.select import Mask
from pai.records import HISTOGRAM_FILE, write_bytes_atomically, write_record
from pai.tracking.base import Session
from pai.training.checkpoint import FaultFn, load_checkpoint, save_checkpoint

MASK_FILE, MODEL_FILE, CHECKPOINT_FILE = "mask.safetensors", "model.safetensors", "checkpoint.pt"
ROUNDS_FILE, ROUND_FILES = "rounds.pt", "round-*.pt"
SCORES_FILE = "scores.safetensors"
_log = logging.getLogger("pai")


def remove_checkpoints(run_dir: Path) -> None:
    """Remove what only an unfinished run needs."""
    for path in (run_dir / CHECKPOINT_FILE, run_dir / ROUNDS_FILE, *run_dir.glob(ROUND_FILES)):
        path.unlink(missing_ok=True)


def _mask_of(record: Mapping[str, Any], path: Path) -> Mask:
    """Return the mask in a file.

    Raises:
        ValueError: it cannot be read, or is not the one of ``record``.
    """
    try:
        mask = load_mask(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if mask_sha256(mask) != record["mask"]["sha256"]:
        raise ValueError(f"{path} is not the mask of the record")
    return mask


def is_complete(run_dir: Path, record: Mapping[str, Any], setting: str) -> None:
    """Say that the run in ``run_dir`` is complete already.

    Raises:
        ConfigError: there is a mask that is not the one of its record; names ``setting``.
    """
    path = run_dir / MASK_FILE
    if path.exists():
        try:
            _mask_of(record, path)
        except ValueError as fault:
            raise ConfigError(
                f"{setting}: {fault}, which is of a completed run; remove the directory to run "
                f"again, or choose another"
            ) from fault
    _log.info("%s is complete already: nothing is done", run_dir)


class Output:
    """The output of a run's main process."""

    checkpoint: Path | None

    def __init__(
        self, run_dir: Path, record: dict[str, Any], clock: Clock, session: Session,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.checkpoint = run_dir / CHECKPOINT_FILE
        self._run_dir, self._record, self._clock = run_dir, record, clock
        self._session, self._device = session, device

    def say(self, text: str, *arguments: Any) -> None:
        """Log a line."""
        _log.info(text, *arguments)

    def warn(self, text: str, *arguments: Any) -> None:
        """Log a warning."""
        _log.warning(text, *arguments)

    def scores(self, scores: Mapping[str, Tensor], *, keep: bool) -> None:
        """Track the scores the mask was selected from; write their histogram.

        With ``keep`` the scores themselves are written too.
        """
        text = json.dumps(score_histogram(scores))
        write_bytes_atomically(self._run_dir / HISTOGRAM_FILE, text.encode())
        self._session.log_scores(scores)
        if keep:
            values = {name: value.contiguous().cpu() for name, value in scores.items()}
            write_bytes_atomically(self._run_dir / SCORES_FILE, save(values))

    def round_checkpoint(self, number: int) -> Path | None:
        """Return where the training of a round before the mask keeps its state."""
        return self._run_dir / ROUND_FILES.replace("*", str(number + 1))

    def round_done(self, state: dict[str, Any]) -> None:
        """Store what the rounds so far have come to, after the record that belongs to it."""
        self._write()
        save_checkpoint(self._run_dir / ROUNDS_FILE, state)
        done = self._run_dir / ROUND_FILES.replace("*", str(state["done"]))
        done.unlink(missing_ok=True)

    def stored_rounds(self, fault: FaultFn) -> dict[str, Any] | None:
        """Return what :meth:`round_done` stored last in the interrupted run, if anything.

        Raises:
            RunError: it is damaged, or ``fault`` says so.
        """
        return load_checkpoint(self._run_dir / ROUNDS_FILE, fault)

    def new_mask(self, model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor) -> None:
        """Describe ``mask`` in the record and write both."""
        self._record["mask"] = mask_report(model, mask, inputs)
        self._record["cost"] = asdict(forward_cost(model, mask, inputs))
        save_mask(mask, self._run_dir / MASK_FILE)
        self._write()

    def stored_mask(self) -> Mask:
        """Return the mask that the interrupted run in this directory trained with.

        Raises:
            RunError: it cannot be read, or is not the one of the record.
        """
        try:
            mask = _mask_of(self._record, self._run_dir / MASK_FILE)
        except ValueError as fault:
            raise RunError(f"{fault}; remove {CHECKPOINT_FILE} beside it to start over") from fault
        _log.info("continuing from %s", self.checkpoint)
        return mask

    def show_mask(self) -> None:
        """Track the mask; warn of layers that lost every weight."""
        report = self._record["mask"]
        if report["collapsed_layers"]:
            names = ", ".join(report["collapsed_layers"])
            _log.warning("LAYER COLLAPSE: no weight left in %s", names)
        if report["cut_at"]:
            _log.warning("THE NETWORK IS CUT: no signal passes %s", report["cut_at"])
        if report["effective_undefined"]:
            _log.info("effective sparsity is not defined: %s", report["effective_undefined"])
        self._session.log_mask(report, self._run_dir / MASK_FILE)

    def epoch(self, row: dict[str, float]) -> None:
        """Track an epoch and add it to the record."""
        self._session.log_epoch(row)
        self._record["history"].append(row)
        self._write()

    def _write(self) -> None:
        self._clock.tick()
        note_peak_memory(self._record, self._device)
        write_record(self._run_dir, self._record)

    def model(self, model: nn.Module) -> None:
        """Write the weights; a shared one (tied embeddings) under each of its names."""
        weights = {
            name: value.cpu().clone(memory_format=torch.contiguous_format)
            for name, value in model.state_dict().items()
        }
        write_bytes_atomically(self._run_dir / MODEL_FILE, save(weights))


class NoOutput(Output):
    """The output of the processes that help the main one: nothing."""

    checkpoint = None

    def __init__(self) -> None:
        pass

    def say(self, text: str, *arguments: Any) -> None:
        """Say nothing."""

    def warn(self, text: str, *arguments: Any) -> None:
        """Say nothing."""

    def scores(self, scores: Mapping[str, Tensor], *, keep: bool) -> None:
        """Track nothing."""

    def round_checkpoint(self, number: int) -> Path | None:
        """Return no path."""
        return None

    def round_done(self, state: dict[str, Any]) -> None:
        """Write nothing."""

    def stored_rounds(self, fault: FaultFn) -> dict[str, Any] | None:
        """Return nothing: the main process sends it."""
        return None

    def new_mask(self, model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor) -> None:
        """Write nothing."""

    def stored_mask(self) -> Mask:
        """Return no mask: the main process sends it."""
        return {}

    def show_mask(self) -> None:
        """Track nothing."""

    def epoch(self, row: dict[str, float]) -> None:
        """Track nothing."""

    def model(self, model: nn.Module) -> None:
        """Write nothing."""
