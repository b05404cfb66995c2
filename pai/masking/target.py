"""Pruning to a given *effective* sparsity."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pai.masking.budgets import kept_count
from pai.masking.effective import Connectivity
from pai.masking.ranking import Mask
from pai.masking.select import check_sparsity


@dataclass(frozen=True)
class Reached:
    """Counts of the mask that was found.

    Attributes:
        wanted: effective weights asked for, ``max(1, round((1 - sparsity) P))``.
        effective: effective weights of the mask; fewer than wanted only if the dense network has
            fewer.
        kept: weights that the mask keeps.
        tried: how many masks were looked at.
    """

    wanted: int
    effective: int
    kept: int
    tried: int


def reach_effective(
    choose: Callable[[float], Mask], connectivity: Connectivity, sparsity: float
) -> tuple[Mask, Reached]:
    """Return the mask that keeps the fewest weights of which enough are effective.

    Bisection over the number of kept weights: the least count whose mask has at least
    ``max(1, round((1 - sparsity) P))`` effective weights, P all prunable weights. Exact where the
    masks are nested, as those of fixed scores are: a larger mask has all the paths of a smaller
    one. One weight more can connect many, so that the count reached may be above the wanted one.

    Args:
        choose: the mask of a direct sparsity; ``choose(0)`` keeps all.
        connectivity: of the network.
        sparsity: the effective sparsity to reach, ``0 <= sparsity < 1``.

    Raises:
        ValueError: sparsity out of range; effective sparsity is not defined for the network.
    """
    check_sparsity(sparsity)
    everything = choose(0.0)
    total = sum(keep.numel() for keep in everything.values())
    wanted = kept_count(sparsity, total)
    low, high, best, tried = wanted - 1, total, everything, 0  # high is enough, low is not
    while high - low > 1:
        middle = (low + high) // 2
        mask = choose(1 - middle / total)
        tried += 1
        if _effective(connectivity, mask) >= wanted:
            high, best = middle, mask
        else:
            low = middle
    kept = sum(int(keep.sum()) for keep in best.values())
    return best, Reached(wanted, _effective(connectivity, best), kept, tried)


def _effective(connectivity: Connectivity, mask: Mapping[str, Tensor]) -> int:
    return sum(int(keep.sum()) for keep in connectivity.paths(mask).effective.values())
