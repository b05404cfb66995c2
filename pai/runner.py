"""The whole pipeline: data, model, BatchNorm warmup, scores, mask, training, record."""

import datetime
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from pai.data.bundle import Batches
from pai.environment import describe_environment, peak_memory_gib
from pai.errors import ConfigError, RunError
from pai.flops import forward_cost
from pai.masking.mask import (
    apply_mask,
    dense_mask,
    load_mask,
    mask_report,
    mask_sha256,
    save_mask,
)
from pai.masking.schedule import find_mask
from pai.masking.select import Mask
from pai.plan import Plan
from pai.prunable import prunable_parameters
from pai.records import (
    read_record,
    remove_partial_writes,
    write_bytes_atomically,
    write_record,
)
from pai.seeding import generator, global_seed
from pai.tracking.base import RunLabels, Session
from pai.training.loop import train

MASK_FILE, MODEL_FILE, CHECKPOINT_FILE = "mask.safetensors", "model.safetensors", "checkpoint.pt"
_log = logging.getLogger("pai")


def run(plan: Plan, run_dir: Path, labels: RunLabels) -> dict[str, Any]:
    """Run ``plan`` in ``run_dir``, or continue the unfinished run that is there.

    The record is written when the run starts, after scoring and when it ends, well or badly.

    Returns:
        The record; the stored one, unchanged, if the run was complete already.

    Raises:
        ConfigError: the directory holds a run with another configuration.
        Exception: whatever made the work fail, after the record says so.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    earlier = check_run_directory(run_dir, plan.config)
    if earlier is not None:
        remove_partial_writes(run_dir)
        if earlier["status"] == "completed":
            (run_dir / CHECKPOINT_FILE).unlink(missing_ok=True)
            return earlier
    resumable = (run_dir / CHECKPOINT_FILE).exists()
    record = _begin(plan, labels, earlier if resumable else None)
    write_record(run_dir, record)
    clock = _Clock(record["timing_s"])
    try:
        with plan.tracker.session(plan.config, labels, run_dir) as session:
            with clock.timed("total"):
                _pipeline(plan, run_dir, record, session, clock)
            record["peak_memory_gib"] = peak_memory_gib(plan.device)
            session.log_result(record)
    except BaseException as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        record["ended_at"] = _now()
        record["peak_memory_gib"] = peak_memory_gib(plan.device)
        write_record(run_dir, record)
        raise
    record |= {"status": "completed", "ended_at": _now()}
    write_record(run_dir, record)
    (run_dir / CHECKPOINT_FILE).unlink(missing_ok=True)
    return record


def check_run_directory(run_dir: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of an earlier run of the same configuration in ``run_dir``, if any.

    Raises:
        ConfigError: the directory holds a run with another configuration (the logger aside).
    """
    parent = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(
            f"hydra.run.dir: {run_dir} cannot be made: {parent} is no writable folder"
        )
    try:
        record = read_record(run_dir)
    except ValueError as error:
        raise ConfigError(f"hydra.run.dir: {error}; choose another directory") from error
    if record is None:
        return None
    stored = record.get("config", {})
    for key in sorted({*config, *stored} - {"logger"}):
        if stored.get(key) != config.get(key):
            raise ConfigError(
                f"hydra.run.dir: {run_dir} holds a run with {key}={stored.get(key)}, not "
                f"{config.get(key)}; choose another directory, or remove this one"
            )
    return record


def _begin(plan: Plan, labels: RunLabels, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """Return the record of a starting run; mask and times of an interrupted one carry over."""
    earlier = earlier or {}
    return {
        "status": "running",
        "error": None,
        "started_at": earlier.get("started_at") or _now(),
        "ended_at": None,
        "name": labels.name,
        "choices": dict(labels.choices),
        "seed": plan.config["seed"],
        "config": plan.config,
        "data": {},
        "warmup": earlier.get("warmup"),
        "mask": earlier.get("mask"),
        "cost": earlier.get("cost"),
        "metrics": {},
        "history": [],
        "timing_s": earlier.get("timing_s", {}),
        "peak_memory_gib": None,
        "environment": describe_environment(plan.device),
    }


def _pipeline(
    plan: Plan, run_dir: Path, record: dict[str, Any], session: Session, clock: "_Clock"
) -> None:
    config = plan.config
    seed, scoring = config["seed"], config["scoring"]

    with clock.timed("data"):
        data = plan.dataset.load().to(plan.device)
        batches = data.scoring_batches(scoring["samples_per_class"], scoring["batch_size"], seed)
        record["data"] = {part: len(getattr(data, part)) for part in ("train", "val", "test")}
        record["data"]["scoring"] = len(batches.order)
    _log.info("data: %s", ", ".join(f"{n:,} {part}" for part, n in record["data"].items()))
    with global_seed(seed, "initialization"):
        model = plan.build_model().to(plan.device)

    checkpoint = run_dir / CHECKPOINT_FILE
    if record["mask"] is not None:  # carried over from an interrupted run
        mask = _stored_mask(run_dir, record)
        _log.info("continuing from %s", checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)  # without its record nothing says what it is from
        with clock.timed("warmup"):
            warm = plan.warmup(model, data.warmup_batches(scoring["warmup_batch_size"], seed))
        record["warmup"] = asdict(warm)
        _log.info("%s", warm)
        _log.info("scoring and masking on %s", plan.device)
        mask = _find_mask(plan, model, batches, clock, session)
        apply_mask(model, mask)
        inputs, _ = next(iter(batches))
        record["mask"] = mask_report(model, mask, inputs)
        record["cost"] = asdict(forward_cost(model, mask, inputs))
        save_mask(mask, run_dir / MASK_FILE)
        write_record(run_dir, record)
    if record["mask"]["collapsed_layers"]:
        _log.warning(
            "LAYER COLLAPSE: no weight left in %s", ", ".join(record["mask"]["collapsed_layers"])
        )
    session.log_mask(record["mask"], run_dir / MASK_FILE)

    def on_epoch(row: dict[str, float]) -> None:
        session.log_epoch(row)
        record["history"].append(row)
        clock.tick()
        write_record(run_dir, record)

    with clock.timed("train"):
        result = train(
            model, mask, data, plan.training,
            seed=seed, checkpoint=checkpoint, on_epoch=on_epoch,
        )  # fmt: skip
    record |= result
    weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    write_bytes_atomically(run_dir / MODEL_FILE, save(weights))


def _stored_mask(run_dir: Path, record: Mapping[str, Any]) -> Mask:
    """Return the mask that the interrupted run trained with."""
    try:
        mask = load_mask(run_dir / MASK_FILE)
    except (OSError, SafetensorError) as error:
        problem = f"cannot be read: {error}"
    else:
        if mask_sha256(mask) == record["mask"]["sha256"]:
            return mask
        problem = "is not the mask of the record"
    raise RunError(
        f"{run_dir / MASK_FILE} {problem}; remove {CHECKPOINT_FILE} beside it to start over"
    )


def _find_mask(
    plan: Plan, model: nn.Module, batches: Batches, clock: "_Clock", session: Session
) -> Mask:
    config = plan.config
    whole = config["include_classifier"]
    if plan.scorer.keeps_everything:
        clock.seconds |= {"score": 0.0, "mask": 0.0}
        return dense_mask(prunable_parameters(model, include_classifier=whole))
    scores: dict[str, Tensor] = {}
    spent = _Clock({"score": 0.0})

    def scorer(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        with spent.timed("score"):
            scores.update(plan.scorer(*arguments, **options))
        return scores

    probes = generator(config["seed"], "probes", plan.device)
    with spent.timed("both"):
        mask = find_mask(
            model, batches, scorer,
            sparsity=config["sparsity"], schedule=plan.schedule, scope=config["scope"],
            generator=probes, include_classifier=whole,
        )  # fmt: skip
    seconds = spent.seconds
    clock.seconds |= {"score": seconds["score"], "mask": seconds["both"] - seconds["score"]}
    session.log_scores(scores)
    return mask


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class _Clock:
    """Adds the seconds spent in named blocks to ``seconds``, once the GPU has caught up."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._since: dict[str, float] = {}

    @contextmanager
    def timed(self, key: str) -> Iterator[None]:
        """Time the block as ``key``."""
        self._since[key] = time.perf_counter()
        try:
            yield
        finally:
            self.tick()
            del self._since[key]

    def tick(self) -> None:
        """Bring ``seconds`` up to date within the blocks, for a record that may be the last."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        for key, since in self._since.items():
            self.seconds[key] = self.seconds.get(key, 0.0) + now - since
            self._since[key] = now
