"""Semi-structured N:M masks: of every M weights in a row along the input, N stay."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pai.masking.budgets import Shapes, sizes_of
from pai.masking.ranking import Mask, check_kept, flat, top, unflatten

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Pattern:
    """N of every M consecutive weights along the input dimension of each output unit.

    A weight of shape ``[out, in, *kernel]`` is read as the matrix ``[out, prod(kernel) * in]`` with
    the input channel innermost: for a linear layer the weight as it is, for a convolution the
    matrix that channels-last implicit GEMMs multiply with, which is where the sparse tensor cores
    of NVIDIA GPUs (2:4) expect the groups. Groups are M consecutive columns of a row; with ``in`` a
    multiple of M each lies within one kernel position. A tensor whose rows are no multiple of M
    (the first convolution of an RGB network, depthwise kernels) stays dense. The first dimension is
    taken for the output, so this is not meant for transposed convolutions.

    Source: Mishra et al. 2021, arXiv 2104.08378; Zhou et al. 2021, arXiv 2102.04010.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(
                f"scope: N:M keeps N of every M weights, 1 <= N < M; got {self.n}:{self.m}"
            )

    @property
    def sparsity(self) -> float:
        """Return ``1 - N/M``."""
        return 1 - self.n / self.m

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether rows of a weight of this shape divide into groups."""
        return len(shape) > 1 and math.prod(shape[1:]) % self.m == 0

    def check(self, shapes: Shapes, sparsity: float) -> None:
        """Raise ``ValueError`` unless ``sparsity`` is ``1 - N/M`` and some layer fits."""
        if abs(sparsity - self.sparsity) > _TOLERANCE:
            raise ValueError(
                f"scope: {self.n}:{self.m} removes {self.m - self.n} of every {self.m} weights, "
                f"which is not sparsity={sparsity:g}; use sparsity={self.sparsity:.4g}"
            )
        if not any(self.fits(shape) for shape in shapes.values()):
            raise ValueError(f"scope: no layer has rows of a multiple of {self.m} weights")

    def kept(self, shapes: Shapes, sparsity: float) -> int:
        """Return how many weights a mask keeps, those of dense layers included."""
        sizes = sizes_of(shapes)
        total = sum(size for name, size in sizes.items() if self.fits(shapes[name]))
        return sum(sizes.values()) - total + self._grouped(total, sparsity)

    def _grouped(self, total: int, sparsity: float) -> int:
        """Return how many of ``total`` weights in groups are kept."""
        count = total // self.m * self.n
        if abs(sparsity - self.sparsity) <= _TOLERANCE:
            return count
        return max(count, round((1 - sparsity) * total))

    def choose(
        self,
        scores: Mapping[str, Tensor],
        sparsity: float,
        towards: float,
        within: Mapping[str, Tensor] | None,
    ) -> Mask:
        """Keep the N highest of each group; layers that do not fit stay dense.

        At a lower sparsity, on the way to the pattern, no group loses more than M - N weights, and
        ``round((1 - sparsity) P)`` stay of the P weights in groups.
        """
        del towards
        fitting = {name: value for name, value in scores.items() if self.fits(value.shape)}
        allowed = {
            name: torch.ones_like(value, dtype=torch.bool)
            if within is None
            else within[name].to(value.device)
            for name, value in fitting.items()
        }
        best = {name: self._best(value, allowed[name]) for name, value in fitting.items()}
        values, free = flat(fitting), flat(allowed)
        kept = flat(best)
        total = len(kept)
        if int(kept.sum()) < total // self.m * self.n:
            raise ValueError(f"within keeps fewer than {self.n} of {self.m} weights in some group")
        missing = self._grouped(total, sparsity) - int(kept.sum())
        others = torch.nonzero(free & ~kept).flatten()
        check_kept(len(others), missing)
        kept[others[top(values[others], missing)]] = True
        chosen = unflatten(kept, fitting)
        return {
            name: chosen.get(name, torch.ones_like(value, dtype=torch.bool))
            for name, value in scores.items()
        }

    def _best(self, values: Tensor, allowed: Tensor) -> Tensor:
        """Return the N highest allowed of each group, in the shape of ``values``."""
        grouped, free = self._groups(values.detach()), self._groups(allowed.to(values.device))
        order = grouped.argsort(dim=1, descending=True, stable=True)
        allowed_first = free.gather(1, order).int().argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, allowed_first)
        kept = torch.zeros_like(free).scatter_(1, order[:, : self.n], value=True) & free
        rows = values.movedim(1, -1)
        return kept.view(rows.shape).movedim(-1, 1)

    def _groups(self, weight: Tensor) -> Tensor:
        return weight.movedim(1, -1).reshape(-1, self.m)


def parse_pattern(text: str) -> Pattern | None:
    """Return the pattern that ``"N:M"`` stands for, ``None`` for text of another form."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    return Pattern(int(found[1]), int(found[2])) if found else None
