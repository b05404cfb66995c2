"""Pruning schedules: at which sparsities the network is scored anew on the way to the target."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pai.masking.select import Mask, Scope, as_rule, check_sparsity, select
from pai.objective import Batches, LossFn
from pai.prunable import prunable_parameters
from pai.state import masked_weights

ScoreFn = Callable[[Mask | None], dict[str, Tensor]]
"""Scores all prunable weights of the network as pruned by the given mask (``None``: dense)."""


@runtime_checkable
class Schedule(Protocol):
    """Gives the sparsity after each round; the last is the target."""

    def sparsities(self, target: float) -> list[float]:
        """Return the sparsity after each round, in order, ending with ``target``."""


@dataclass(frozen=True)
class OneShot:
    """One round: score the dense network, prune to the target."""

    def sparsities(self, target: float) -> list[float]:
        """Return ``[target]``."""
        return [target]


@dataclass(frozen=True)
class Exponential:
    """``rounds`` rounds with density ``rho^(k/n)`` after round k (SynFlow, iterative SNIP)."""

    rounds: int = 100

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)

    def sparsities(self, target: float) -> list[float]:
        """Return ``1 - (1 - target)^(k/n)`` for k = 1..n; the last is ``target`` itself."""
        inner = [1 - (1 - target) ** (k / self.rounds) for k in range(1, self.rounds)]
        return [*inner, target]


@dataclass(frozen=True)
class Linear:
    """``rounds`` rounds with sparsity ``target * k / n`` after round k."""

    rounds: int = 10

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)

    def sparsities(self, target: float) -> list[float]:
        """Return ``target * k / n`` for k = 1..n; the last is ``target`` itself."""
        return [*(target * k / self.rounds for k in range(1, self.rounds)), target]


def iterate(
    score: ScoreFn, schedule: Schedule, sparsity: float, scope: Scope, *,
    within: Mask | None = None, towards: float | None = None,
) -> Mask:  # fmt: skip
    """Score and select once per round; a weight that was removed never returns."""
    check_sparsity(sparsity)
    rule, goal = as_rule(scope), sparsity if towards is None else towards
    mask = within
    for target in schedule.sparsities(sparsity):
        mask = select(score(mask), target, rule, within=mask, towards=goal)
    assert mask is not None, "a schedule has at least one round"
    return mask


def find_mask(
    model: nn.Module,
    batches: Batches,
    scorer: Callable[..., dict[str, Tensor]],
    *,
    sparsity: float,
    schedule: Schedule | None = None,
    scope: Scope = "global",
    loss_fn: LossFn | None = None,
    generator: torch.Generator | None = None,
    include_classifier: bool = False,
    within: Mask | None = None,
    towards: float | None = None,
) -> Mask:
    """Score ``model`` and return the mask, over as many rounds as ``schedule`` has.

    In each round the scorer sees the network with the weights of earlier rounds removed. The model
    itself is bit-identical afterwards; :func:`pai.apply_mask` prunes it.

    Args:
        model: any module, on any device.
        batches: re-iterable of ``(inputs, targets)`` on the model's device.
        scorer: from :func:`pai.load_scorer`, or any callable of its form.
        sparsity: the fraction of prunable weights to remove.
        schedule: default :class:`OneShot`.
        scope: ``"global"``, ``"layer"``, ... (:func:`pai.select`).
        loss_fn: default cross-entropy.
        generator: makes stochastic scorers reproducible.
        include_classifier: also prune the final classifier.
        within: an earlier mask, the network's so far; its removed weights stay removed.
        towards: the final sparsity, if ``sparsity`` is one on the way to it.

    Raises:
        ValueError: see :func:`pai.select`; or the model has no prunable weights.
    """
    parameters = prunable_parameters(model, include_classifier=include_classifier)
    if not parameters:
        raise ValueError("the model has no prunable weights")

    def score(mask: Mask | None) -> dict[str, Tensor]:
        with masked_weights(model, mask):
            return scorer(
                model, batches, loss_fn=loss_fn, generator=generator, parameters=parameters
            )

    return iterate(score, schedule or OneShot(), sparsity, scope, within=within, towards=towards)


def _check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
