"""The whole pipeline: data, model, BatchNorm warmup, scores, mask, training, record."""

import datetime
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from pai.clock import Clock
from pai.data.task import Bundle
from pai.distributed import broadcast_object, world_size
from pai.environment import (
    decisive_changes,
    describe_environment,
    earlier_environments,
    note_peak_memory,
    reset_peak_memory,
)
from pai.errors import ConfigError
from pai.identity import flatten
from pai.masking.mask import apply_mask
from pai.masking.select import Mask
from pai.memory import memory_budget
from pai.output import (
    CHECKPOINT_FILE,
    ROUNDS_FILE,
    NoOutput,
    Output,
    is_complete,
    remove_checkpoints,
)
from pai.plan import Plan
from pai.precision import scoring_precision
from pai.records import FolderInUseError, alone_in, remove_partial_writes, write_record
from pai.rounds import check_steps, prune_in_rounds, rounds_fault
from pai.run_directory import check_run_directory
from pai.scoring import Draw, score_and_select, scoring_samples
from pai.seeding import global_seed, seed_of
from pai.tracking.base import RunLabels
from pai.training.loop import check_parts, train
from pai.warmup import WarmupReport


def run(
    plan: Plan, run_dir: Path, labels: RunLabels, setting: str = "hydra.run.dir"
) -> dict[str, Any]:
    """Run ``plan`` in ``run_dir``, or continue the unfinished run that is there.

    The record is written when the run starts, after scoring and when it ends, well or badly. Errors
    name ``setting`` as what has chosen the directory.

    Returns:
        The record; the stored one, unchanged, if the run was complete already.

    Raises:
        ConfigError: the directory holds a run with another configuration or files that are no
            run's (:func:`check_run_directory`), or another process is at work there.
        Exception: whatever made the work fail, after the record says so.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with alone_in(run_dir):
            return _run(plan, run_dir, labels, setting)
    except FolderInUseError as error:
        raise ConfigError(
            f"{setting}: another process is running in {run_dir}; wait for it, or choose "
            f"another directory"
        ) from error


def _run(plan: Plan, run_dir: Path, labels: RunLabels, setting: str) -> dict[str, Any]:
    earlier = check_run_directory(run_dir, plan.config, setting)
    if earlier is not None:
        remove_partial_writes(run_dir)
        if earlier["status"] == "completed":
            is_complete(run_dir, earlier, setting)
            remove_checkpoints(run_dir)
            broadcast_object(None)  # for `follow`
            return earlier
    remains = _what_remains(run_dir, earlier)
    record = _begin(plan, labels, remains)
    write_record(run_dir, record)
    clock = Clock(record["timing_s"], plan.device)
    reset_peak_memory(plan.device)
    try:
        with plan.tracker.session(plan.config, labels, run_dir) as session:
            with clock.timed("total"):
                output = Output(run_dir, record, clock, session, plan.device)
                _warn_of_changes(remains, record, output)
                _pipeline(plan, broadcast_object(record), clock, output)
            note_peak_memory(record, plan.device)
            session.log_result(record)
    except BaseException as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        record["ended_at"] = _now()
        note_peak_memory(record, plan.device)
        write_record(run_dir, record)
        raise
    record |= {"status": "completed", "ended_at": _now()}
    write_record(run_dir, record)
    remove_checkpoints(run_dir)
    return record


def follow(plan: Plan) -> None:
    """Take part in the run of ``plan`` that the main process does, writing nothing."""
    record = broadcast_object(None)
    if record is not None:
        _pipeline(plan, record, Clock({}, plan.device), NoOutput())


def _what_remains(run_dir: Path, earlier: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the record of the work that need not be repeated, if there is any.

    Without a checkpoint of the training, the mask is found again from what the rounds have stored.
    """
    if earlier is None:
        return None
    if earlier["mask"] is not None and (run_dir / CHECKPOINT_FILE).exists():
        return earlier
    if (run_dir / ROUNDS_FILE).exists():
        (run_dir / CHECKPOINT_FILE).unlink(missing_ok=True)
        return earlier | {"mask": None}
    remove_checkpoints(run_dir)  # nothing says what they are from
    return None


def _begin(plan: Plan, labels: RunLabels, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """Return the record of a starting run.

    Mask, times, memory and environments of an interrupted one carry over.
    """
    earlier = earlier or {}
    environment = describe_environment(plan.device) | {"processes": world_size()}
    return {
        "status": "running",
        "error": None,
        "started_at": earlier.get("started_at") or _now(),
        "ended_at": None,
        "name": labels.name,
        "choices": dict(labels.choices),
        "seed": plan.config["seed"],
        "config": plan.config,
        "data": earlier.get("data", {}),
        "warmup": earlier.get("warmup"),
        "baseline": earlier.get("baseline"),
        "scoring": earlier.get("scoring"),
        "mask": earlier.get("mask"),
        "cost": earlier.get("cost"),
        "metrics": {},
        "history": [],
        "timing_s": earlier.get("timing_s", {}),
        "peak_memory_gib": earlier.get("peak_memory_gib"),
        "environment": environment,
        "earlier_environments": earlier_environments(earlier, environment),
    }


def _warn_of_changes(
    earlier: dict[str, Any] | None, record: dict[str, Any], output: Output
) -> None:
    """Warn if what is left of an interrupted run comes from another environment."""
    before = (earlier or {}).get("environment", {})
    if changes := decisive_changes(before, record["environment"]):
        output.warn(
            "the run goes on in another environment than its earlier part (%s); the record has "
            "both", "; ".join(changes),
        )  # fmt: skip


def _check_same_data(before: dict[str, Any], found: dict[str, Any]) -> None:
    """Check that an interrupted run goes on with the data that it began with.

    Raises:
        ConfigError: naming what differs; what older records do not tell is not compared.
    """
    old, new = flatten(before), flatten(found)
    for key in old:
        if key in new and old[key] != new[key]:
            raise ConfigError(
                f"dataset: data.{key} was {old[key]} when this run began and is {new[key]} now; "
                f"restore the data, or start in another run directory"
            )


def _pipeline(plan: Plan, record: dict[str, Any], clock: Clock, output: Output) -> None:
    config = plan.config
    seed, scoring = seed_of(config, "data"), config["scoring"]

    with clock.timed("data"):
        data = plan.dataset.load().to(plan.device)
        draw = scoring_samples(data, scoring, seed)
        batches = draw(0)
        found: dict[str, Any] = {n: len(getattr(data, n)) for n in ("train", "val", "test")}
        found["scoring"] = len(batches.order)
    sizes = ", ".join(f"{n:,} {part}" for part, n in found.items())
    output.say("data: %s; %s", sizes, plan.spec.says())
    found |= {"spec": plan.spec.describe(), **data.describe()}
    _check_same_data(record["data"], found)
    record["data"] = found
    check_parts(data, plan.training)
    for remark in plan.training.remarks():
        output.warn("%s", remark)
    for parts, count in record["data"].get("duplicates", {}).items():
        if count:
            first, second = parts.split("_")
            output.warn("%d images of the %s part are in the %s part too", count, second, first)
    with global_seed(seed_of(config, "initialization"), "initialization"):
        model = plan.build_model().to(plan.device)
    plan.training.check_network(model)

    if record["mask"] is not None:  # carried over from an interrupted run
        mask = output.stored_mask()
    else:
        with memory_budget(scoring["memory_gib"]), scoring_precision(scoring["precision"]):
            mask = _prune(plan, model, data, draw, record, clock, output)
        with clock.timed("report"):
            output.new_mask(model, mask, next(iter(batches))[0])
    mask = broadcast_object(mask)
    output.show_mask()

    with clock.timed("train"):
        record |= train(
            model, mask, data, plan.training,
            seed=seed, checkpoint=output.checkpoint, on_epoch=output.epoch,
            first_step=plan.baseline.rewind_step or 0,
        )  # fmt: skip
    output.model(model)


def _prune(
    plan: Plan, model: nn.Module, data: Bundle, draw: Draw,
    record: dict[str, Any], clock: Clock, output: Output,
) -> Mask:  # fmt: skip
    """Warm up, train if the baseline wants it, score and mask; leaves the pruned network."""
    seed = plan.config["seed"]
    check_steps(plan, data)
    warmup_batches = data.warmup_batches(
        plan.config["scoring"]["warmup_batch_size"], seed_of(plan.config, "data")
    )
    state = broadcast_object(output.stored_rounds(partial(rounds_fault, plan=plan, model=model)))
    if state is None:
        with clock.timed("warmup"):
            warm: object = plan.warmup(model, warmup_batches)
        if not isinstance(warm, WarmupReport):
            raise ConfigError(
                f"warmup._target_: {plan.config['warmup']['_target_']} returns a "
                f"{type(warm).__name__} where a pai.warmup.WarmupReport is needed"
            )
        record["warmup"] = asdict(warm)
        output.say("%s", warm)
    output.say("scoring and masking on %s", plan.device)

    def find(number: int, sparsity: float, within: Mask | None) -> Mask:
        return score_and_select(
            plan, model, draw, record, clock, output,
            number=number, sparsity=sparsity, within=within,
        )  # fmt: skip

    mask, record["baseline"] = prune_in_rounds(plan, model, data, find, state, clock, output)
    mask = plan.sanity.mask(mask, seed)
    if plan.sanity.new_weights:
        with global_seed(seed_of(plan.config, "initialization"), "sanity/initialization"):
            other = plan.build_model().to(plan.device)
        plan.warmup(other, warmup_batches)
        model.load_state_dict(other.state_dict())
    apply_mask(model, mask)
    return mask


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
