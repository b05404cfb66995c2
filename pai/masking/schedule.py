"""Pruning schedules: at which sparsities the network is scored anew on the way to the target.

In round k the scorer sees the network with the weights of round k - 1's mask, and the mask of round
k is selected from its scores. Where a score multiplies by the weight it is the dense weight
(:func:`pai.state.dense_weights`); gradients and all else are those at the masked point.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, pairwise, repeat

import torch
from torch import Tensor, nn

from pai.masking.ranking import Mask, check_mask
from pai.masking.select import Rule, Scope, as_rule, check_sparsity, select
from pai.objective import Batches, LossFn
from pai.prunable import check_scores, prunable_parameters
from pai.state import masked_weights

_CLOSE = 1e-9  # sparsities that differ by less are the same
ScoreFn = Callable[[Mask | None], dict[str, Tensor]]
"""Scores all prunable weights of the network as pruned by the given mask (``None``: dense)."""

RoundBatches = Callable[[int], Batches]
"""Gives the scoring batches of a round, counted from 0."""


class Schedule(ABC):
    """Gives the sparsity after each round; the last is the target."""

    revive: bool = False
    """Whether a weight that an earlier round removed may return: each round then selects among all
    weights (FORCE), otherwise among those that are left (SynFlow, iterative SNIP)."""

    resample: bool = False
    """Whether each round draws scoring samples of its own, otherwise all rounds see the same."""

    @abstractmethod
    def sparsities(self, target: float) -> list[float]:
        """Return the sparsity after each round, in order, ending with ``target``."""


@dataclass(frozen=True)
class OneShot(Schedule):
    """One round: score the dense network, prune to the target."""

    def sparsities(self, target: float) -> list[float]:
        """Return ``[target]``."""
        return [target]


@dataclass(frozen=True)
class Exponential(Schedule):
    """``rounds`` rounds with density ``rho^(k/n)`` after round k (SynFlow, iterative SNIP, FORCE).

    Args:
        rounds: how many.
        revive: see :class:`Schedule`.
        resample: see :class:`Schedule`.
    """

    rounds: int = 100
    revive: bool = False
    resample: bool = False

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)

    def sparsities(self, target: float) -> list[float]:
        """Return ``1 - (1 - target)^(k/n)`` for k = 1..n; the last is ``target`` itself."""
        inner = [1 - (1 - target) ** (k / self.rounds) for k in range(1, self.rounds)]
        return [*inner, target]


@dataclass(frozen=True)
class Linear(Schedule):
    """``rounds`` rounds with sparsity ``target * k / n`` after round k.

    Args:
        rounds: how many.
        revive: see :class:`Schedule`.
        resample: see :class:`Schedule`.
    """

    rounds: int = 10
    revive: bool = False
    resample: bool = False

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)

    def sparsities(self, target: float) -> list[float]:
        """Return ``target * k / n`` for k = 1..n; the last is ``target`` itself."""
        return [*(target * k / self.rounds for k in range(1, self.rounds)), target]


def iterate(
    score: ScoreFn, schedule: Schedule, sparsity: float, scope: Scope, *,
    within: Mask | None = None, towards: float | None = None,
) -> Mask:  # fmt: skip
    """Score and select once per round, among the weights that are left or (``revive``) all.

    Rounds that would keep at least as many weights as ``within`` are left out, except the last.
    """
    check_sparsity(sparsity)
    rule, goal = as_rule(scope), sparsity if towards is None else towards
    rounds = checked(schedule, sparsity)
    mask = within
    for target in _ahead(rounds, rule, within):
        left = within if schedule.revive else mask
        mask = select(score(mask), target, rule, within=left, towards=goal)
    assert mask is not None, "a schedule has at least one round"
    return mask


def checked(schedule: Schedule, target: float) -> list[float]:
    """Return the sparsities of a schedule, which anybody may have written.

    Raises:
        ValueError: they fall, or end elsewhere than at ``target``.
    """
    found = list(schedule.sparsities(target))
    falls = any(later < earlier - _CLOSE for earlier, later in pairwise([0.0, *found]))
    if not found or falls or abs(found[-1] - target) > _CLOSE:
        raise ValueError(
            f"schedule: the sparsities of {type(schedule).__name__} must rise and end at the "
            f"target {target}; they are {found}"
        )
    return [*found[:-1], target]


def _ahead(sparsities: list[float], rule: Rule, within: Mask | None) -> list[float]:
    """Return the sparsities of the rounds that remove something from ``within``, and the last."""
    if within is None:
        return sparsities
    shapes = {name: keep.shape for name, keep in within.items()}
    left = sum(int(keep.sum()) for keep in within.values())
    return [*(s for s in sparsities[:-1] if rule.kept(shapes, s) < left), sparsities[-1]]


def find_mask(
    model: nn.Module,
    batches: Batches | RoundBatches,
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
        batches: re-iterable of ``(inputs, targets)`` on the model's device; or a function that
            returns such batches for a round (0, 1, ...), which ``schedule.resample`` asks for.
        scorer: from :func:`pai.load_scorer`, or any callable of its form.
        sparsity: the fraction of prunable weights to remove.
        schedule: default :class:`OneShot`; :func:`pai.default_schedule` gives a method's own.
        scope: ``"global"``, ``"layer"``, ... (:func:`pai.select`).
        loss_fn: default cross-entropy.
        generator: makes stochastic scorers reproducible.
        include_classifier: also prune the final classifier.
        within: an earlier mask, the network's so far; its removed weights stay removed. Rounds that
            would keep as many weights or more are left out.
        towards: the final sparsity, if ``sparsity`` is one on the way to it.

    Raises:
        ValueError: see :func:`pai.select`; or the model has no prunable weights; a callable that is
            no scorer of pai's leaves some out; or the schedule asks for samples per round that
            ``batches`` cannot give, or does not rise to the sparsity.
    """
    for kind, value in (("scorer", scorer), ("schedule", schedule)):
        if isinstance(value, str):
            raise ValueError(f"{kind}: give the object itself, pai.load_{kind}({value!r})")
    parameters = prunable_parameters(model, include_classifier=include_classifier)
    if not parameters:
        raise ValueError("the model has no prunable weights")
    if within is not None:
        check_mask(within, {name: p.shape for name, p in parameters.items()})
    schedule = schedule or OneShot()
    rounds = _rounds(batches, schedule)

    def score(mask: Mask | None) -> dict[str, Tensor]:
        with masked_weights(model, mask):
            scores = scorer(
                model, next(rounds), loss_fn=loss_fn, generator=generator, parameters=parameters
            )
        check_scores(scores, parameters)
        return scores

    return iterate(score, schedule, sparsity, scope, within=within, towards=towards)


def _rounds(batches: Batches | RoundBatches, schedule: Schedule) -> Iterator[Batches]:
    """Yield the batches of each round."""
    if callable(batches):
        return map(batches, count() if schedule.resample else repeat(0))
    if schedule.resample:
        raise ValueError(
            "batches must be a function of the round, because the schedule resamples; "
            "give one, or a schedule with resample=False"
        )
    return repeat(batches)


def _check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
