"""From a validated configuration to the objects of a run: everything cheap, nothing started."""

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pai.causality import sees_the_future
from pai.components import build
from pai.data.task import Dataset, Spec
from pai.distributed import launched, local_rank
from pai.errors import ConfigError, first_line, told
from pai.gpus import own_gpu
from pai.masking.budgets import Shapes
from pai.masking.effective import Connectivity
from pai.masking.moves import NotDefinedError
from pai.masking.rounds import TrainAndPrune
from pai.masking.sanity import Sanity
from pai.masking.schedule import Schedule, checked
from pai.masking.select import Rule, as_rule
from pai.prunable import classifier, prunable_parameters
from pai.schema import GROUPS, check_config
from pai.scorers.base import Scorer
from pai.tracking.base import Tracker
from pai.training.options import Training
from pai.warmup import Warmup

_KINDS = {
    "dataset": Dataset, "scorer": Scorer, "warmup": Warmup, "schedule": Schedule,
    "baseline": TrainAndPrune, "sanity": Sanity, "training": Training, "logger": Tracker,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A run that is known to make sense: options in range, data in place, model fits the data."""

    config: dict[str, Any]
    dataset: Dataset
    spec: Spec
    build_model: Callable[[], nn.Module]
    scorer: Scorer
    warmup: Warmup
    schedule: Schedule
    rule: Rule
    baseline: TrainAndPrune
    sanity: Sanity
    training: Training
    tracker: Tracker
    device: torch.device


def prepare(config: Mapping[str, Any]) -> Plan:
    """Validate ``config`` and build its components.

    The data set is only looked at (folders, one image header; a text is read); the model is built
    and run on two empty samples on the CPU.

    Raises:
        ConfigError: what the user has to change, naming the key.
    """
    check_config(config)
    parts = {group: build(group, config[group]) for group in GROUPS if group != "model"}
    for group, kind in _KINDS.items():
        if not isinstance(parts[group], kind):
            raise ConfigError(
                f"{group}._target_: {config[group]['_target_']!r} does not make a {kind.__name__}"
            )
    device = resolve_device(config["device"])
    parts["training"].check(device)
    spec = parts["dataset"].check()
    wanted = config["scoring"]["samples_per_class"]
    if wanted > spec.smallest_class:
        raise ConfigError(f"scoring.samples_per_class: {wanted} is too many; {spec.room()}")
    if parts["training"].mixup_alpha > 0 and not spec.task.mixable:
        raise ConfigError(
            f"training.mixup_alpha: mixup averages inputs, and those of {spec.task.data} are "
            f"numbers of {spec.task.predictions}; set it to 0"
        )
    try:
        inputs = spec.inputs()
    except RuntimeError as error:
        raise ConfigError(f"dataset: two {spec.says()} do not fit into memory") from error
    parts["scorer"].check_inputs(inputs)
    try:
        parts["scorer"].check_outputs(spec.outputs())
    except ValueError as error:
        raise ConfigError(f"scorer: {error}") from error
    effective = config["sparsity_is"] == "effective"
    shapes = _check_model(
        json.dumps(config["model"]), spec,
        include_classifier=config["include_classifier"], effective=effective,
    )  # fmt: skip
    _check_scorer(json.dumps(config["scorer"]), json.dumps(config["model"]), spec)
    return Plan(
        config=dict(config),
        dataset=parts["dataset"],
        spec=spec,
        build_model=_model_builder(config["model"], spec),
        scorer=parts["scorer"],
        warmup=parts["warmup"],
        schedule=parts["schedule"],
        rule=_check_pruning(config, parts, shapes),
        baseline=parts["baseline"],
        sanity=parts["sanity"],
        training=parts["training"],
        tracker=parts["logger"],
        device=device,
    )


def _check_pruning(config: Mapping[str, Any], parts: Mapping[str, Any], shapes: Shapes) -> Rule:
    """Return the rule of selection, once all that decides about the mask fits together.

    Raises:
        ConfigError: they do not.
    """
    try:
        rule = as_rule(config["scope"])
        if not parts["scorer"].keeps_everything:
            rule.check(shapes, config["sparsity"])
            checked(parts["schedule"], config["sparsity"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if parts["scorer"].keeps_everything and type(parts["sanity"]) is not Sanity:
        raise ConfigError(
            "sanity: scorer=none keeps everything, so there is nothing to check; use sanity=none"
        )
    if config["sparsity_is"] == "effective":
        _check_effective(config, parts, rule, shapes)
    try:
        parts["sanity"].check(rule)
    except ValueError as error:
        raise ConfigError(f"sanity: {error}") from error
    try:
        parts["baseline"].check(parts["schedule"], parts["training"].epochs)
    except ValueError as error:
        raise ConfigError(f"baseline: {error}") from error
    return rule


def _check_effective(
    config: Mapping[str, Any], parts: Mapping[str, Any], rule: Rule, shapes: Shapes
) -> None:
    """Raise :class:`ConfigError` where one set of scores cannot give masks of all sparsities."""
    rounds = len(parts["schedule"].sparsities(config["sparsity"])) * parts["baseline"].rounds
    if rounds > 1:
        raise ConfigError(
            f"sparsity_is: effective needs scores that do not depend on the sparsity, and this run "
            f"scores {rounds} times on the way to it; use schedule=oneshot and one round"
        )
    try:
        rule.check(shapes, 0.0)
    except ValueError:
        raise ConfigError(
            f"sparsity_is: effective tries several direct sparsities, and scope={config['scope']} "
            f"allows one; use sparsity_is=direct or another scope"
        ) from None


def _model_builder(node: Mapping[str, Any], spec: Spec) -> Callable[[], nn.Module]:
    """Bind what the run knows of the data set: classes and channels, a vocabulary, a graph.

    Raises:
        ConfigError: the builder lacks a parameter, or is not for such data.
    """
    builder = build("model", {**node, "_partial_": True})
    parameters = inspect.signature(builder).parameters
    try:
        supplied = spec.arguments(parameters.keys())
    except ValueError as error:
        raise ConfigError(f"model._target_: {node['_target_']} {error}") from error
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for name in supplied:
            if name not in parameters:
                raise ConfigError(
                    f"model._target_: {node['_target_']} has no parameter {name}, which the run "
                    f"supplies for {spec.task.data} (model={spec.task.example_model} has it)"
                )
    return functools.partial(builder, **supplied)


def resolve_device(name: str) -> torch.device:
    """Return the device; ``auto`` is this job's own GPU, or CUDA if there is one, else the CPU.

    Of several processes (``torchrun``) each gets the GPU of its number on its machine.

    Raises:
        ConfigError: the device is not there, or not for several processes.
    """
    if name == "auto":
        own = own_gpu()
        name = "cuda" if torch.cuda.is_available() else "cpu"
        name = name if own is None else f"cuda:{own}"
    if launched() > 1:
        if name not in ("cpu", "cuda"):
            raise ConfigError(
                f"device: {launched()} processes cannot share {name!r}; use auto, cuda or cpu"
            )
        if name == "cuda":
            name = f"cuda:{local_rank()}"
    device = torch.device(name)
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[device.type]
    if (device.index or 0) >= there:
        raise ConfigError(
            f"device: {name!r} is not there (torch sees {torch.cuda.device_count()} CUDA devices); "
            f"use auto or cpu"
        )
    return device


@functools.cache
def _check_scorer(scorer_config: str, model_config: str, spec: Spec) -> None:
    """Let the scorer look at the network; remembered over the jobs of a sweep."""

    def network() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return _model_builder(json.loads(model_config), spec)().eval()

    build("scorer", json.loads(scorer_config)).check_network(network, spec.inputs())


def _built(build_model: Callable[[], nn.Module], target: str) -> nn.Module:
    """Return the model of the builder ``target``.

    Raises:
        ConfigError: it fails, in whatever way, or makes something else.
    """
    try:
        model: object = build_model()
    except (ValueError, RuntimeError) as error:  # RuntimeError: more memory than there is
        raise ConfigError(f"model: {first_line(error)}") from error
    except Exception as error:
        raise ConfigError(f"model._target_: {target} fails: {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model._target_: {target} returns a {type(model).__name__}, and an nn.Module is needed"
        )
    return model


@functools.cache
def _check_model(
    model_config: str, spec: Spec, *, include_classifier: bool, effective: bool
) -> Shapes:
    """Build the model once and run it on two empty samples; remembered over the jobs of a sweep.

    Returns:
        The shapes of its prunable weights by name.
    """
    build_model = _model_builder(json.loads(model_config), spec)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = _built(build_model, json.loads(model_config)["_target_"]).eval()
        try:
            outputs = model(spec.inputs())
        except (ValueError, RuntimeError, AssertionError, ArithmeticError, IndexError) as error:
            raise ConfigError(f"model: does not fit {spec.says()}: {first_line(error)}") from error
        except Exception as error:
            raise ConfigError(f"model: fails on {spec.says()}: {told(error)}") from error
    shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if shape != spec.outputs():
        raise ConfigError(
            f"model: gives outputs of shape {shape} where {spec.outputs()} is needed for two "
            f"{spec.task.sample}s and {spec.outputs()[1]} classes"
        )
    if spec.task.causal and sees_the_future(model, *spec.outputs()[1:]):
        raise ConfigError(
            f"model: its predictions depend on later {spec.task.predictions}, which are what it is "
            f"to predict; use one that looks back only (model={spec.task.example_model} does)"
        )
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in prunable_parameters(
            model, include_classifier=include_classifier
        ).items()
    }
    if not shapes:
        hint = "" if include_classifier or classifier(model) is None else (
            "; only its classifier could be pruned, with include_classifier=true"
        )  # fmt: skip
        raise ConfigError(f"model: has no prunable weights{hint}")
    if effective:
        try:
            Connectivity(model, spec.inputs()[:1]).paths({})
        except NotDefinedError as error:
            raise ConfigError(
                f"sparsity_is: effective sparsity is not defined for this network: {error}"
            ) from error
    return shapes
