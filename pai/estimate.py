"""What runs will cost, told before they are run: FLOPs counted, hours estimated.

Training costs ``epochs * samples * 3 * forward``, a backward pass being two forward passes; that
before the mask (``baseline``) counts too. ``samples`` are the training images, sequences or nodes
(the nodes of the smallest class times the number of classes), ``forward`` is that of one. A graph
network computes the whole graph for any number of nodes, so its FLOPs are fewer than counted, by a
factor up to the batch size; its measured speed is counted alike. Scoring costs as many forward
passes as the scorer makes on a small network, where it is run on one and on two samples; so it is
counted for any scorer, but for a network of another kind it is only about right.

Selecting a mask has no FLOPs. One selection among random scores is timed, and a round that selects
among the share ``d`` of the weights that earlier rounds have left takes ``d`` times as long.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pai.flops import forward_cost
from pai.masking.effective import Connectivity
from pai.masking.select import select
from pai.models.resnet import thin_resnet
from pai.plan import Plan
from pai.prunable import prunable_parameters
from pai.scorers.memo import remembering

_MEASURED_FLOPS = 2e9


@dataclass(frozen=True)
class JobCost:
    """FLOPs of one job (2 per multiply-accumulate, dense network), seconds of its selections.

    ``shared`` names what is computed for scoring if the cache can share it with other jobs.
    """

    score: float
    train: float
    select_s: float
    shared: tuple[str, ...]


class Estimator:
    """Estimates jobs; what jobs have in common is counted once."""

    def __init__(self) -> None:
        self._forward: dict[str, int] = {}
        self._passes: dict[str, tuple[float, float, tuple[str, ...]]] = {}
        self._selection: dict[str, tuple[float, float]] = {}

    def cost(self, plan: Plan) -> JobCost:
        """Return what a job costs if it shares nothing."""
        config, spec = plan.config, plan.spec
        forward = self.forward(plan)
        train = 3.0 * forward * spec.training_samples * _epochs(plan)
        if plan.scorer.keeps_everything:
            return JobCost(0.0, train, 0.0, ())
        about = json.dumps([config["scorer"], spec.outputs()[1]])
        if about not in self._passes:
            self._passes[about] = _passes(plan)
        fixed, each, keys = self._passes[about]
        rounds = len(plan.schedule.sparsities(config["sparsity"])) * plan.baseline.rounds
        samples = config["scoring"]["samples_per_class"] * spec.scoring_classes
        score = rounds * forward * (fixed + each * samples)
        parts = (
            "model", "dataset", "warmup", "seed", "seeds", "include_classifier", "scoring",
            "device",
        )  # fmt: skip
        subject = json.dumps({part: config.get(part) for part in parts}, sort_keys=True)
        alone = rounds > 1 or plan.baseline.trains or config["scoring"]["cache_dir"] is None
        shared = () if alone else tuple(f"{subject} {key}" for key in keys)
        return JobCost(score, train, self.selection_s(plan), shared)

    def selection_s(self, plan: Plan) -> float:
        """Return the seconds of all selections of a mask."""
        parts = ("model", "dataset", "scope", "sparsity_is", "include_classifier", "device")
        about = json.dumps([plan.config[part] for part in parts])
        if about not in self._selection:
            self._selection[about] = _selection(plan)
        once, effective = self._selection[about]
        sparsities = plan.schedule.sparsities(plan.config["sparsity"])
        removed = [0.0 if plan.schedule.revive else s for s in (0.0, *sparsities[:-1])]
        return plan.baseline.rounds * once * sum(1 - s for s in removed) + effective

    def forward(self, plan: Plan) -> int:
        """Return the FLOPs of a forward pass of one sample."""
        about = json.dumps([plan.config["model"], plan.config["dataset"]])
        if about not in self._forward:
            cost = forward_cost(_model(plan), {}, _samples(plan, 1))
            self._forward[about] = cost.forward_flops_dense
        return self._forward[about]


def measured_speed(plan: Plan, forward: int) -> float:
    """Return the FLOPs per second of training steps of the plan's network on its device."""
    model = _model(plan).to(plan.device).train()
    count = max(2, min(plan.training.batch_size, round(_MEASURED_FLOPS / (3 * max(1, forward)))))
    samples = _samples(plan, count).to(plan.device)
    seconds = [_seconds(lambda: model(samples).sum().backward(), plan.device) for _ in range(3)]
    return 3 * forward * count / min(seconds)


def _selection(plan: Plan) -> tuple[float, float]:
    """Return the seconds of a selection among all weights, and those of the effective sparsity.

    The latter tries as many masks as it takes to halve the number of weights down to one, and
    follows the paths of each.
    """
    config, device = plan.config, plan.device
    model = _model(plan).to(device)
    stream = torch.Generator(device).manual_seed(0)
    parameters = prunable_parameters(model, include_classifier=config["include_classifier"])
    scores = {n: torch.rand(p.shape, generator=stream, device=device)
              for n, p in parameters.items()}  # fmt: skip
    once = _seconds(lambda: select(scores, config["sparsity"], plan.rule), device)
    if config["sparsity_is"] == "direct":
        return once, 0.0
    connectivity = Connectivity(model, plan.spec.inputs()[:1].to(device))
    paths = _seconds(lambda: connectivity.paths({}), device)
    return once, (once + paths) * math.log2(sum(p.numel() for p in parameters.values()))


def _model(plan: Plan) -> nn.Module:
    """Return the plan's network; the random numbers of the process stay where they are."""
    with torch.random.fork_rng(devices=[]):
        return plan.build_model()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def recorded_speed(done: Sequence[tuple[JobCost, Mapping[str, Any]]]) -> float | None:
    """Return the FLOPs per second of completed runs, ``None`` if they tell nothing.

    Args:
        done: cost and record of each; scores that came from the cache are left out.
    """
    flops, seconds = 0.0, 0.0
    for cost, record in done:
        flops += cost.train
        seconds += sum(record["timing_s"].get(part, 0.0) for part in ("pretrain", "train"))
        if not record["scoring"].get("cached"):
            flops += cost.score
            seconds += record["timing_s"].get("score", 0.0)
    return flops / seconds if flops > 0 and seconds > 0 else None


def _epochs(plan: Plan) -> float:
    """Return the epochs of all trainings, those before the mask included."""
    baseline, epochs = plan.baseline, plan.training.epochs
    each = max(1, math.ceil(plan.spec.training_samples / plan.training.batch_size))
    steps = max(0, epochs * each - (baseline.rewind_step or 0))
    for number in range(baseline.rounds if baseline.trains else 0):
        steps += len(baseline.steps_of(number, epochs, each))
    return steps / each


def _samples(plan: Plan, count: int) -> torch.Tensor:
    return torch.cat([plan.spec.inputs()[:1]] * count)


def _passes(plan: Plan) -> tuple[float, float, tuple[str, ...]]:
    """Return forward passes in all and per sample, and the keys of what the cache would keep."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = thin_resnet(
            num_classes=plan.spec.outputs()[1], in_channels=1, depth=8, width=4
        )
        inputs = torch.randn(2, 1, 8, 8)
    targets = torch.tensor([0, plan.spec.outputs()[1] - 1])
    forward = forward_cost(model, {}, inputs).forward_flops_dense
    found, keys = [], []
    for count in (1, 2):
        batches = [(inputs[:count], targets[:count])]
        stream = torch.Generator().manual_seed(0)
        with (
            tempfile.TemporaryDirectory() as folder,
            remembering(Path(folder), model, batches, stream, {}) as memo,
            FlopCounterMode(display=False) as counter,
        ):
            plan.scorer(model, batches, generator=stream)
        found.append(counter.get_total_flops() / forward)
        keys = [str(entry["key"]) for entry in memo.entries] if memo else []
    each = max(0.0, found[1] - found[0])
    return max(0.0, found[0] - each), each, tuple(keys)
