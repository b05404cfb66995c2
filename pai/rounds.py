"""The rounds of training, scoring and pruning before a run's own training, and how they resume.

After each round its outcome goes to a file, and so do the weights to rewind to when their step has
come; a run that is started again continues after the last whole round, and within the next one
after its last epoch.
"""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from pai.clock import Clock
from pai.data.task import Bundle
from pai.distributed import broadcast_object, broadcast_tensors
from pai.errors import ConfigError
from pai.flops import forward_cost
from pai.masking.mask import dense_mask
from pai.masking.select import Mask
from pai.output import Output
from pai.plan import Plan
from pai.prunable import prunable_parameters
from pai.seeding import derive_seed, seed_of
from pai.training.checkpoint import weights_fault
from pai.training.loop import NEVER, Moment, steps_per_epoch, train

FindFn = Callable[[int, float, Mask | None], Mask]
"""Finds the mask of a round: its number from 0, its sparsity, the mask so far."""
_SPENT = ("steps", "epochs", "training_flops_dense", "training_flops_masked")
_FLOPS_PER_FORWARD = 3  # a training step: forward, and backward as two of its kind


def check_steps(plan: Plan, data: Bundle) -> None:
    """Raise :class:`ConfigError` if the baseline names a step that no training reaches."""
    try:
        plan.baseline.check_steps(plan.training.epochs, steps_per_epoch(data, plan.training))
    except ValueError as error:
        raise ConfigError(f"baseline: {error}") from error


def rounds_fault(state: Mapping[str, Any], plan: Plan, model: nn.Module) -> str | None:
    """Return what is wrong with a state that :func:`prune_in_rounds` has stored, if anything."""
    if set(state) != {"done", "model", "rewind", "mask", "rows"}:
        return f"its keys are {reprlib.repr(sorted(map(str, state)))}"
    done, rows, rounds = state["done"], state["rows"], plan.baseline.rounds
    if type(done) is not int or not 0 <= done <= rounds:
        return f"it has {reprlib.repr(done)} of {rounds} rounds"
    if not isinstance(rows, list) or len(rows) != done:
        return f"it does not tell of {done} rounds"
    if not all(isinstance(row, Mapping) and set(_SPENT) <= set(row) for row in rows):
        return "it does not tell what its rounds cost"
    weights = model.state_dict()
    fault = weights_fault("its model", state["model"], weights)
    if fault is None and state["rewind"] is not None:
        fault = weights_fault("what it rewinds to", state["rewind"], weights)
    if fault is None and (done or state["mask"] is not None):
        classifier = plan.config["include_classifier"]
        prunable = prunable_parameters(model, include_classifier=classifier)
        fault = weights_fault("its mask", state["mask"], prunable)
    return fault


def prune_in_rounds(
    plan: Plan,
    model: nn.Module,
    data: Bundle,
    find: FindFn,
    state: dict[str, Any] | None,
    clock: Clock,
    output: Output,
) -> tuple[Mask, dict[str, Any]]:
    """Find the mask as ``plan.baseline`` says; leave ``model`` with the weights to train from.

    The mask of the last round is not applied.

    Args:
        plan: of the run.
        model: as it was initialized and warmed up.
        data: to train on.
        find: finds the mask of one round; all processes are given the main one's.
        state: what :meth:`pai.output.Output.round_done` has stored of an interrupted run.
        clock: gets the seconds of training as ``pretrain``.
        output: gets the state after each round.

    Returns:
        The mask, and for the record what was spent before it: steps, epochs, FLOPs, rounds.
    """
    baseline = plan.baseline
    if state is None:
        state = {"done": 0, "model": _copy(model), "rewind": None, "mask": None, "rows": []}
    if baseline.rewind_step == 0 and state["rewind"] is None:
        state["rewind"] = state["model"]
    if baseline.trains and state["done"] == 0:
        output.round_done(state)
    model.load_state_dict(state["model"])
    targets = baseline.sparsities(plan.config["sparsity"])
    for number in range(state["done"], len(targets)):
        row = {"sparsity": targets[number], "steps": 0, "epochs": 0, "history": [], "metrics": {}}
        if baseline.trains:
            with clock.timed("pretrain"):
                row |= _train(plan, model, data, number, state, output)
        mask = broadcast_object(find(number, targets[number], state["mask"]))
        if state["rewind"] is not None:
            model.load_state_dict(state["rewind"])
        row["kept"] = sum(int(keep.sum()) for keep in mask.values())
        state |= {"done": number + 1, "mask": mask, "rows": [*state["rows"], row]}
        if baseline.trains:
            state["model"] = _copy(model)
            output.round_done(state)
    return state["mask"], _spent(state["rows"] if baseline.trains else [])


def _train(
    plan: Plan, model: nn.Module, data: Bundle, number: int, state: dict[str, Any],
    output: Output,
) -> dict[str, Any]:  # fmt: skip
    """Train for the round; note the weights to rewind to when their step has come."""
    baseline, seed = plan.baseline, seed_of(plan.config, "data")
    options = replace(plan.training, epochs=baseline.epochs_of(number, plan.training.epochs))
    each = steps_per_epoch(data, options)
    steps = baseline.steps_of(number, plan.training.epochs, each)
    parameters = prunable_parameters(model, include_classifier=plan.config["include_classifier"])
    mask = state["mask"] or dense_mask(parameters)
    output.say(
        "round %d: training before pruning, steps %d to %d (an epoch has %d)",
        number + 1, steps.start + 1, steps.stop, each,
    )  # fmt: skip

    def note() -> None:
        broadcast_tensors(model.buffers())
        state["rewind"] = _copy(model)
        output.round_done(state)

    trained = train(
        model, mask, data, options,
        seed=seed if baseline.rewind_step is not None else derive_seed(seed, f"round/{number}"),
        checkpoint=output.round_checkpoint(number), on_epoch=lambda row: None,
        first_step=steps.start, last_step=steps.stop,
        moment=Moment(baseline.rewind_step or -1, note) if number == 0 else NEVER,
    )  # fmt: skip
    inputs, _ = next(iter(data.batches(data.train, 1)))
    cost = asdict(forward_cost(model, mask, inputs))
    samples = [
        step // each * len(data.train) + min(step % each * options.batch_size, len(data.train))
        for step in (steps.start, steps.stop)
    ]
    forwards = len(steps) if data.task.whole else samples[1] - samples[0]
    passes = _FLOPS_PER_FORWARD * forwards
    flops = {
        f"training_flops_{kind}": passes * cost[f"forward_flops_{kind}"]
        for kind in ("dense", "masked")
    }
    return trained | flops | {"steps": len(steps), "epochs": len(steps) / each}


def _copy(model: nn.Module) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _spent(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up what the rounds cost; FLOPs are 3 times the forward passes' of all training images."""
    return {key: sum(row[key] for row in rows) for key in _SPENT} | {"rounds": rows}
