"""The whole pipeline: data, model, BatchNorm warmup, scores, mask, training, record."""

import datetime
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pai.clock import Clock
from pai.data.task import SampleBatches
from pai.distributed import broadcast_object, world_size
from pai.environment import describe_environment, peak_memory_gib
from pai.errors import ConfigError
from pai.masking.mask import apply_mask, dense_mask
from pai.masking.schedule import find_mask
from pai.masking.select import Mask
from pai.memory import memory_budget
from pai.output import CHECKPOINT_FILE, NoOutput, Output
from pai.parallel import processes
from pai.plan import Plan
from pai.prunable import prunable_parameters
from pai.records import FolderInUseError, alone_in, read_record, remove_partial_writes, write_record
from pai.scorers.memo import remembering
from pai.seeding import generator, global_seed
from pai.tracking.base import RunLabels
from pai.training.loop import train


def run(plan: Plan, run_dir: Path, labels: RunLabels) -> dict[str, Any]:
    """Run ``plan`` in ``run_dir``, or continue the unfinished run that is there.

    The record is written when the run starts, after scoring and when it ends, well or badly.

    Returns:
        The record; the stored one, unchanged, if the run was complete already.

    Raises:
        ConfigError: the directory holds a run with another configuration, or another process is at
            work there.
        Exception: whatever made the work fail, after the record says so.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with alone_in(run_dir):
            return _run(plan, run_dir, labels)
    except FolderInUseError as error:
        raise ConfigError(
            f"hydra.run.dir: another process is running in {run_dir}; wait for it, or choose "
            f"another directory"
        ) from error


def _run(plan: Plan, run_dir: Path, labels: RunLabels) -> dict[str, Any]:
    earlier = check_run_directory(run_dir, plan.config)
    if earlier is not None:
        remove_partial_writes(run_dir)
        if earlier["status"] == "completed":
            (run_dir / CHECKPOINT_FILE).unlink(missing_ok=True)
            broadcast_object(None)  # for `follow`
            return earlier
    checkpoint = run_dir / CHECKPOINT_FILE
    if earlier is None or earlier["mask"] is None:  # nothing says what a checkpoint here is from
        checkpoint.unlink(missing_ok=True)
    record = _begin(plan, labels, earlier if checkpoint.exists() else None)
    write_record(run_dir, record)
    clock = Clock(record["timing_s"])
    try:
        with plan.tracker.session(plan.config, labels, run_dir) as session:
            with clock.timed("total"):
                output = Output(run_dir, record, clock, session)
                _pipeline(plan, broadcast_object(record), clock, output)
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
    checkpoint.unlink(missing_ok=True)
    return record


def follow(plan: Plan) -> None:
    """Take part in the run of ``plan`` that the main process does, writing nothing."""
    record = broadcast_object(None)
    if record is not None:
        _pipeline(plan, record, Clock({}), NoOutput())


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
        "scoring": earlier.get("scoring"),
        "mask": earlier.get("mask"),
        "cost": earlier.get("cost"),
        "metrics": {},
        "history": [],
        "timing_s": earlier.get("timing_s", {}),
        "peak_memory_gib": None,
        "environment": describe_environment(plan.device) | {"processes": world_size()},
    }


def _pipeline(plan: Plan, record: dict[str, Any], clock: Clock, output: Output) -> None:
    config = plan.config
    seed, scoring = config["seed"], config["scoring"]

    with clock.timed("data"):
        data = plan.dataset.load().to(plan.device)
        batches = data.scoring_batches(scoring["samples_per_class"], scoring["batch_size"], seed)
        record["data"] = {part: len(getattr(data, part)) for part in ("train", "val", "test")}
        record["data"]["scoring"] = len(batches.order)
    output.say("data: %s", ", ".join(f"{n:,} {part}" for part, n in record["data"].items()))
    record["data"] |= data.describe()
    with global_seed(seed, "initialization"):
        model = plan.build_model().to(plan.device)

    if record["mask"] is not None:  # carried over from an interrupted run
        mask = output.stored_mask()
    else:
        with clock.timed("warmup"):
            warm = plan.warmup(model, data.warmup_batches(scoring["warmup_batch_size"], seed))
        record["warmup"] = asdict(warm)
        output.say("%s", warm)
        output.say("scoring and masking on %s", plan.device)
        with memory_budget(scoring["memory_gib"]):
            record["scoring"] = _describe_scores(plan, model, batches, output)
            mask = _find_mask(plan, model, batches, record, clock, output)
        apply_mask(model, mask)
        with clock.timed("report"):
            output.new_mask(model, mask, next(iter(batches))[0])
    mask = broadcast_object(mask)
    output.show_mask()

    with clock.timed("train"):
        record |= train(
            model, mask, data, plan.training,
            seed=seed, checkpoint=output.checkpoint, on_epoch=output.epoch,
        )  # fmt: skip
    output.model(model)


def _describe_scores(
    plan: Plan, model: nn.Module, batches: SampleBatches, output: Output
) -> dict[str, Any]:
    parameters = prunable_parameters(model, include_classifier=plan.config["include_classifier"])
    told = plan.scorer.describe(model, batches, parameters)
    if told.get("curved"):
        output.say(
            "the curvature is the Gauss-Newton diagonal, not the Hessian's: the network has second "
            "derivatives in %d of %d weight tensors", len(told["curved"]), len(parameters),
        )  # fmt: skip
    return told


def _find_mask(
    plan: Plan,
    model: nn.Module,
    batches: SampleBatches,
    record: dict[str, Any],
    clock: Clock,
    output: Output,
) -> Mask:
    config = plan.config
    whole = config["include_classifier"]
    if plan.scorer.keeps_everything:
        clock.seconds |= {"score": 0.0, "mask": 0.0}
        return dense_mask(prunable_parameters(model, include_classifier=whole))
    scores: dict[str, Tensor] = {}
    spent = Clock({"score": 0.0})

    def scorer(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        with spent.timed("score"):
            scores.update(plan.scorer(*arguments, **options))
        return scores

    probes = generator(config["seed"], "probes", plan.device)
    folder = config["scoring"]["cache_dir"]
    # later rounds depend on how far earlier ones have moved the random stream; of several
    # processes one could wait for the other
    alone = len(plan.schedule.sparsities(config["sparsity"])) == processes() == 1
    with (
        remembering(
            Path(folder).expanduser() if folder and alone else None, model, batches, probes,
            about={"model": config["model"], "spec": plan.spec.describe()},
        ) as memo,
        spent.timed("both"),
    ):  # fmt: skip
        mask = find_mask(
            model, batches, scorer,
            sparsity=config["sparsity"], schedule=plan.schedule, scope=config["scope"],
            generator=probes, include_classifier=whole,
        )  # fmt: skip
    seconds = spent.seconds
    clock.seconds |= {"score": seconds["score"], "mask": seconds["both"] - seconds["score"]}
    entries = [] if memo is None else memo.entries
    record["scoring"] |= {"cached": any(entry["hit"] for entry in entries), "cache": entries}
    output.scores(scores)
    return mask


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
