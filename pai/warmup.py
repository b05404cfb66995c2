"""BatchNorm warmup: give the normalisation layers real statistics before weights are scored.

At initialization BatchNorm has running mean 0 and variance 1, so in eval mode it normalises
nothing: signals and gradients explode or vanish with depth, and whole layers lose all weights
(Gollini Navarrete et al., arXiv 2502.11450, section 4). One forward pass in train mode
repairs that.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pai.finite import check_finite, source_of
from pai.precision import chosen_multiplications
from pai.state import Buffers

Batches = Iterable[tuple[Tensor, Tensor]]
Statistics = Literal["running", "population"]


@dataclass(frozen=True)
class WarmupReport:
    """What a warmup did: how many BatchNorm layers it updated, from how many batches."""

    batchnorm_layers: int
    batches: int
    statistics: Statistics | None

    def __str__(self) -> str:
        if self.batchnorm_layers == 0:
            return "warmup: the model has no BatchNorm layer, there is nothing to do"
        if self.statistics is None:
            return f"warmup: none, {self.batchnorm_layers} BatchNorm layers keep mean 0, variance 1"
        return (
            f"warmup: {self.statistics} statistics of {self.batchnorm_layers} BatchNorm layers "
            f"from {self.batches} batches"
        )


@runtime_checkable
class Warmup(Protocol):
    """Changes nothing but the statistics of normalisation layers."""

    def __call__(self, model: nn.Module, batches: Batches) -> WarmupReport:
        """Warm up ``model`` in place."""


@dataclass(frozen=True)
class NoWarmup:
    """Leaves the model as it is."""

    def __call__(self, model: nn.Module, batches: Batches) -> WarmupReport:
        """Count the BatchNorm layers that keep their initial statistics."""
        return WarmupReport(len(_batchnorms(model)), batches=0, statistics=None)


@dataclass(frozen=True)
class BatchNormWarmup:
    """The options of :func:`warm_up_batchnorm`, checked before any work."""

    statistics: Statistics = "running"
    num_batches: int | None = None

    def __post_init__(self) -> None:
        if self.num_batches is not None and self.num_batches < 1:
            raise ValueError(f"num_batches must be at least 1, got {self.num_batches}")
        if self.statistics not in ("running", "population"):
            raise ValueError(
                f"statistics must be 'running' or 'population', got {self.statistics!r}"
            )

    def __call__(self, model: nn.Module, batches: Batches) -> WarmupReport:
        """Warm up ``model`` in place; see :func:`warm_up_batchnorm` for errors too."""
        layers = _batchnorms(model)
        if not layers:
            return WarmupReport(0, batches=0, statistics=None)
        observe = _population(layers) if self.statistics == "population" else _nothing()
        seen = 0
        with (
            _all_or_nothing(layers), _only_batchnorm_trains(model, layers), observe as commit,
            torch.no_grad(), chosen_multiplications(),
        ):  # fmt: skip
            for inputs, _ in islice(batches, self.num_batches):
                model(inputs)
                seen += 1
            commit()
        if seen == 0:
            raise ValueError("batches is empty: BatchNorm warmup needs at least one batch")
        _check(model, layers, batches)
        return WarmupReport(len(layers), seen, self.statistics)


def warm_up_batchnorm(
    model: nn.Module,
    batches: Batches,
    *,
    statistics: Statistics = "running",
    num_batches: int | None = None,
) -> WarmupReport:
    """Update the running statistics of every BatchNorm layer by forward passes; nothing else.

    BatchNorm layers run in train mode (they normalise with the statistics of the batch), all
    other modules in eval mode (no dropout). Weights, gradients and train/eval flags are
    untouched.

    - ``"running"``: each layer's own rule, an exponential average with its ``momentum`` (what a
      training epoch does; with momentum 0.1 the last 20 batches carry 88 % of the weight).
    - ``"population"``: the exact mean and variance of everything the layer saw in the pass,
      ``mean = E[x]``, ``var = E[(x - mean)^2]`` over all samples and positions, merged batch by
      batch in float64 (Chan et al. 1979), unbiased. Independent of order and momentum.

    Args:
        model: any module; without BatchNorm layers nothing happens.
        batches: re-iterable of ``(inputs, targets)`` on the model's device; targets are unused.
        statistics: which of the two rules.
        num_batches: stop after so many batches; ``None`` uses all.

    Returns:
        How many layers were updated and how many batches they saw.

    Raises:
        ValueError: ``num_batches`` is below 1, ``statistics`` unknown, or there is no batch.
        RunError: a statistic is NaN or infinite; the layer is named.
    """
    return BatchNormWarmup(statistics, num_batches)(model, batches)


def _batchnorms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]


def _check(model: nn.Module, layers: Iterable[nn.Module], batches: Batches) -> None:
    """Raise :class:`RunError` if a running statistic is NaN or infinite."""
    names = {module: name for name, module in model.named_modules()}
    for layer in layers:
        statistics = {f"{names[layer]}.{name}": buffer for name, buffer in layer.named_buffers()}
        check_finite("statistics", statistics, lambda: _source(model, batches))


def _source(model: nn.Module, batches: Batches) -> str:
    return source_of(model, next(iter(batches))[0])


@contextmanager
def _only_batchnorm_trains(model: nn.Module, layers: Iterable[nn.Module]) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for layer in layers:
            layer.train()
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def _all_or_nothing(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Bring the statistics back if the block raises: half a warmup is none."""
    buffers = Buffers(layers)
    try:
        yield
    except BaseException:
        buffers.restore()
        raise


@contextmanager
def _nothing() -> Iterator[Callable[[], None]]:
    yield lambda: None


@contextmanager
def _population(
    layers: list[nn.modules.batchnorm._BatchNorm],
) -> Iterator[Callable[[], None]]:
    """Collect exact moments of each layer's input by a hook; the yielded call stores them."""
    moments = {layer: _Moments() for layer in layers}

    def commit() -> None:
        for layer, moment in moments.items():
            if moment.count:
                moment.store(layer)

    hooks = [
        layer.register_forward_pre_hook(lambda module, args: moments[module].add(args[0]))
        for layer in layers
    ]
    try:
        yield commit
    finally:
        for hook in hooks:
            hook.remove()


class _Moments:
    """Count, mean and sum of squared deviations per channel, merged over batches."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.deviation: Tensor = torch.zeros(())

    def add(self, x: Tensor) -> None:
        channels_first = x.detach().double().transpose(0, 1).flatten(1)
        count = channels_first.shape[1]
        mean = channels_first.mean(1)
        deviation = (channels_first - mean[:, None]).square().sum(1)
        if self.count == 0:
            self.count, self.mean, self.deviation = count, mean, deviation
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.deviation = self.deviation + deviation + delta**2 * (self.count * count / total)
        self.count = total

    def store(self, layer: nn.modules.batchnorm._BatchNorm) -> None:
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(self.mean)
        layer.running_var.copy_(self.deviation / max(self.count - 1, 1))
