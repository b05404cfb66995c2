"""Sanity checks of a mask (Frankle et al. 2021, arXiv 2009.08576): what does it lose if altered?

A method that loses nothing when its mask is shuffled within the layers has chosen layer budgets and
no weights; one that loses nothing from new initial weights has not used their values; one that
loses nothing from inverted scores has ranked nothing.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from pai.masking.budgets import copied_budget
from pai.masking.patterns import Pattern
from pai.masking.ranking import Mask
from pai.masking.select import Rule, select
from pai.seeding import generator


class Sanity:
    """No check: scores, mask and weights as they are. Subclasses alter one of the three."""

    new_weights: ClassVar[bool] = False
    """Whether the network that is trained gets initial weights that were never scored."""

    keeps_mask: ClassVar[bool] = True
    """Whether the mask stays the one that the scope has selected."""

    def scores(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what masks are selected from."""
        return dict(scores)

    def mask(self, mask: Mapping[str, Tensor], seed: int) -> Mask:
        """Return the mask to train with; ``seed`` is the run's."""
        return dict(mask)

    def check(self, rule: Rule) -> None:
        """Raise ``ValueError`` if the altered mask would not be of the form that was asked for."""
        if isinstance(rule, Pattern) and not self.keeps_mask:
            raise ValueError(
                f"this check moves weights within layers, which breaks {rule.n}:{rule.m} groups; "
                f"scorer=random with the same scope is the random mask of this form"
            )


class Shuffle(Sanity):
    """The mask permuted uniformly at random within each layer."""

    keeps_mask: ClassVar[bool] = False

    def mask(self, mask: Mapping[str, Tensor], seed: int) -> Mask:
        """Return the permuted mask; each layer keeps as many weights as before."""
        stream = generator(seed, "sanity/shuffle")
        return {
            name: keep.flatten()[torch.randperm(keep.numel(), generator=stream).to(keep.device)]
            .view(keep.shape)
            for name, keep in mask.items()
        }  # fmt: skip


class RandomSameBudget(Sanity):
    """The mask of random scores with the same number of weights in each layer.

    A uniform permutation of a mask *is* a random mask with its counts: this has the distribution of
    :class:`Shuffle`, in another, independent draw. The difference of the two is thus the noise of
    the comparison, and its expectation is zero. The scores depend on the seed and the shapes alone,
    so masks of other methods and sparsities with the same seed are made of the same random ranking.
    """

    keeps_mask: ClassVar[bool] = False

    def mask(self, mask: Mapping[str, Tensor], seed: int) -> Mask:
        """Return the random mask; each layer keeps as many weights as before."""
        scores = {
            name: torch.rand(
                keep.shape,
                generator=generator(seed, f"sanity/random/{name}"),
                dtype=torch.float64,
            ).to(keep.device)
            for name, keep in mask.items()
        }
        kept = sum(int(keep.sum()) for keep in mask.values())
        total = sum(keep.numel() for keep in mask.values())
        return select(scores, 1 - kept / total, copied_budget(mask))


class Reinit(Sanity):
    """The same mask on new initial weights, from a random stream of their own.

    All parameters are new, and BatchNorm is warmed up anew as the run's warmup says: the network is
    that of another seed, except for the mask.
    """

    new_weights: ClassVar[bool] = True


class Invert(Sanity):
    """The lowest scores are kept instead of the highest, in every round of a schedule.

    With ``scope=global`` the layer budgets become those of the inverted ranking, too, as in the
    paper; a scope with budgets (``layer``, ``erk``, the mask of the method itself) holds them.
    """

    def scores(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the negative scores."""
        return {name: -value for name, value in scores.items()}
