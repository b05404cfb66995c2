"""Selecting the weights to keep, with exact counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pai.errors import nearest
from pai.masking.budgets import (
    Budget,
    CopiedBudget,
    Shapes,
    erdos_renyi_kernel,
    kept_count,
    read_budget,
    same_fraction,
    sizes_of,
    uniform_plus,
    whole_numbers,
)
from pai.masking.patterns import parse_pattern
from pai.masking.ranking import Mask, check_kept, check_mask, keep_highest

__all__ = ["SCOPES", "Mask", "Rule", "Scope", "as_rule", "check_sparsity", "kept_count", "select"]


@runtime_checkable
class Rule(Protocol):
    """Which weights compete with each other for the places that a sparsity leaves."""

    def check(self, shapes: Shapes, sparsity: float) -> None:
        """Raise ``ValueError`` if weights of these shapes cannot be brought to ``sparsity``."""

    def kept(self, shapes: Shapes, sparsity: float) -> int:
        """Return how many weights a mask of ``sparsity`` keeps in all."""

    def choose(
        self,
        scores: Mapping[str, Tensor],
        sparsity: float,
        towards: float,
        within: Mapping[str, Tensor] | None,
    ) -> Mask:
        """Return the mask; ``sparsity`` may be one on the way to ``towards``."""


Scope = str | Budget | Rule


def check_sparsity(sparsity: float) -> None:
    """Raise ``ValueError`` unless ``sparsity`` is a number with ``0 <= sparsity < 1``."""
    if not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise ValueError(
            f"sparsity must be at least 0 and below 1 (the fraction removed), got {sparsity!r}"
        )


@dataclass(frozen=True)
class Everywhere:
    """All weights compete with each other."""

    def check(self, shapes: Shapes, sparsity: float) -> None:
        """Any sparsity can be had."""

    def kept(self, shapes: Shapes, sparsity: float) -> int:
        """Return :func:`kept_count` of all weights."""
        return kept_count(sparsity, sum(sizes_of(shapes).values()))

    def choose(
        self,
        scores: Mapping[str, Tensor],
        sparsity: float,
        towards: float,
        within: Mapping[str, Tensor] | None,
    ) -> Mask:
        """Keep the highest of all."""
        del towards
        return keep_highest(scores, self.kept(_shapes(scores), sparsity), within)


@dataclass(frozen=True)
class PerLayer:
    """The weights of a layer compete for the places of its budget."""

    budget: Budget

    def check(self, shapes: Shapes, sparsity: float) -> None:
        """Refuse what the budget refuses, and a copied budget of another total."""
        if isinstance(self.budget, CopiedBudget):
            self.budget.check_shapes(shapes)
            self.budget.check_total(shapes, self.kept(shapes, sparsity))
        self.counts(shapes, sparsity)

    def kept(self, shapes: Shapes, sparsity: float) -> int:
        """Return :func:`kept_count` of all weights."""
        return kept_count(sparsity, sum(sizes_of(shapes).values()))

    def counts(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        """Return how many weights each layer keeps; they sum to :meth:`kept` exactly."""
        kept = self.kept(shapes, sparsity)
        return whole_numbers(self.budget(shapes, kept), kept, sizes_of(shapes))

    def counts_within(
        self, shapes: Shapes, sparsity: float, towards: float, room: Mapping[str, int]
    ) -> dict[str, int]:
        """Return the counts where each layer has ``room`` weights left.

        No layer gets fewer than at ``towards`` if it has them, so that rounds on the way there end
        at exactly the counts of a single round.
        """
        kept = self.kept(shapes, sparsity)
        check_kept(sum(room.values()), kept)
        lowest = {n: min(count, room[n]) for n, count in self.counts(shapes, towards).items()}
        return whole_numbers(self.budget(shapes, kept), kept, room, lowest)

    def choose(
        self,
        scores: Mapping[str, Tensor],
        sparsity: float,
        towards: float,
        within: Mapping[str, Tensor] | None,
    ) -> Mask:
        """Keep the highest of each layer."""
        shapes = _shapes(scores)
        room = sizes_of(shapes) if within is None else {n: int(within[n].sum()) for n in shapes}
        counts = self.counts_within(shapes, sparsity, towards, room)
        return {
            name: keep_highest({name: value}, counts[name], within)[name]
            for name, value in scores.items()
        }


def _shapes(scores: Mapping[str, Tensor]) -> Shapes:
    return {name: value.shape for name, value in scores.items()}


_NAMED: dict[str, Rule] = {
    "global": Everywhere(),
    "layer": PerLayer(same_fraction),
    "uniform_plus": PerLayer(uniform_plus),
    "erk": PerLayer(erdos_renyi_kernel),
}
SCOPES = tuple(_NAMED)


def as_rule(scope: Scope) -> Rule:
    """Return the rule for a scope as :func:`select` takes it.

    Raises:
        ValueError: the text is no scope, or no mask can be read where it points to.
    """
    if isinstance(scope, Rule):
        return scope
    if callable(scope):
        return PerLayer(scope)
    if not isinstance(scope, str):
        raise ValueError(
            f"scope must be a text such as 'global', a rule or a budget, got {scope!r}"
        )
    if scope in _NAMED:
        return _NAMED[scope]
    pattern = parse_pattern(scope)
    if pattern is not None:
        return pattern
    if _is_there(Path(scope)):
        return PerLayer(read_budget(Path(scope)))
    raise ValueError(
        f"scope: {scope!r} is not one of {', '.join(SCOPES)}, no pattern such as 2:4 and no "
        f"existing mask.safetensors or run directory{nearest(scope, SCOPES)}"
    )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no path at all: too long, or below a folder that cannot be entered
        return False


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: Scope = "global",
    *,
    within: Mapping[str, Tensor] | None = None,
    towards: float | None = None,
) -> Mask:
    """Return the mask that keeps the highest scores: exactly :func:`kept_count` of them.

    Equal scores are kept in order of position (order of the dict, then row-major), so the same
    scores always give the same mask.

    Args:
        scores: one tensor per parameter, in the order of the network; high = keep.
        sparsity: the fraction of weights to remove, ``0 <= sparsity < 1``.
        scope: which weights compete with each other. ``"global"``: all. By layer, each with its own
            number of places (:mod:`pai.masking.budgets`): ``"layer"`` (the same fraction),
            ``"uniform_plus"``, ``"erk"``, the path of a ``mask.safetensors`` or run directory (the
            counts of that mask), or a function from shapes and total to the places of each layer.
            ``"N:M"``: every M in a row (:class:`pai.masking.patterns.Pattern`); layers that do
            not divide into such groups stay dense on top of the count.
        within: keep only weights that this earlier mask keeps; counts still refer to all weights.
        towards: the final sparsity, if ``sparsity`` is one on the way to it.

    Returns:
        Boolean tensors (True = keep) in the shapes of the scores.

    Raises:
        ValueError: sparsity out of range, unknown scope or one that does not fit the sparsity or
            the shapes, no scores, a NaN score, or ``within`` is no mask of these weights or keeps
            fewer than are to be kept.
    """
    check_sparsity(sparsity)
    rule = as_rule(scope)
    if sum(value.numel() for value in scores.values()) == 0:
        raise ValueError("scores is empty: there is nothing to select from")
    for name, value in scores.items():
        if bool(torch.isnan(value).any()):
            raise ValueError(f"scores of {name!r} contain NaN")
    shapes = _shapes(scores)
    if within is not None:
        check_mask(within, shapes)
    towards = sparsity if towards is None else towards
    rule.check(shapes, towards)
    return rule.choose(scores, sparsity, towards, within)
