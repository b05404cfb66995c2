"""Saliencies: pure one-liners on weight ``w``, mean gradient ``g`` and curvature diagonal ``h``.

Each names as its arguments the factors it needs, and only those are computed. ``g`` and ``h``
belong to the same objective, the mean loss per sample, so sums of their terms are in units of
loss. High = keep.
"""

from torch import Tensor


def gradient_magnitude(g: Tensor) -> Tensor:
    """``|g|``: the gradient-norm criterion of Gollini Navarrete et al., arXiv 2502.11450."""
    return g.abs()


def connection_sensitivity(w: Tensor, g: Tensor) -> Tensor:
    """``|w g|``: SNIP (Lee et al. 2019, arXiv 1810.02340), without its normalising constant."""
    return (w * g).abs()


def curvature(h: Tensor) -> Tensor:
    """``h``: the diagonal itself (the D of FD and HD in arXiv 2502.11450)."""
    return h


def optimal_brain_damage(w: Tensor, h: Tensor) -> Tensor:
    """``w^2 h / 2``: loss increase to second order, no gradient (LeCun et al. 1989; FP, HP)."""
    return w.square() * h / 2


def second_order_change(w: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """``|w g + w^2 h / 2|``: both Taylor terms (FTS, HTS in arXiv 2502.11450).

    Removing w changes the loss by ``-w g + w^2 h / 2``; the paper's score has a plus sign.
    """
    return (w * g + w.square() * h / 2).abs()
