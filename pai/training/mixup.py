"""Mixup (Zhang et al. 2018, arXiv 1710.09412).

Each batch is replaced by ``x' = lam x + (1 - lam) x[pair]`` with one ``lam ~ Beta(alpha, alpha)``
and one random permutation ``pair`` per batch, and its loss by
``lam * loss(f(x'), y) + (1 - lam) * loss(f(x'), y[pair])``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pai.seeding import derive_seed


@dataclass(frozen=True)
class Mixture:
    """The draw for one batch."""

    lam: float
    pair: Tensor

    def inputs(self, x: Tensor) -> Tensor:
        """Return ``lam x + (1 - lam) x[pair]``."""
        return torch.lerp(x[self.pair], x, self.lam)

    def targets(self, quantity: Tensor, paired: Tensor) -> Tensor:
        """Mix what was computed with the targets ``y`` and with ``y[pair]``."""
        return self.lam * quantity + (1 - self.lam) * paired


def draw_mixture(alpha: float, count: int, seed: int, purpose: str) -> Mixture:
    """Draw ``lam`` and the pairs of a batch of ``count`` images from a stream of their own."""
    stream = np.random.default_rng(derive_seed(seed, purpose))
    return Mixture(float(stream.beta(alpha, alpha)), torch.from_numpy(stream.permutation(count)))
