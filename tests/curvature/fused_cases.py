"""Layers for the fused kernel, with autograd's truth in float64.

As a script (``TRITON_INTERPRET=1 python fused_cases.py FILE``) it runs the kernel on every case and
saves the results.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pai.curvature import fused

Layer = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Case:
    """A layer, the shape of one input, and how input and gradients lie in memory."""

    name: str
    build: Callable[[], Layer]
    shape: tuple[int, ...]
    samples: int = 3
    columns: int = 1
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    with_sums: bool = True
    programs: int = 1024  # wanted at least; few of them take several samples each

    def problem(self) -> tuple[Layer, Tensor, Tensor]:
        """Return the layer in float64, inputs ``[B, ...]`` and gradients ``[B, K, ...]``."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = self.build().double()
            x = torch.randn(self.samples, *self.shape, dtype=torch.float64).to(self.dtype)
            out = layer(x.double()).shape[1:]
            # columns first in memory, as when one backward pass per column is stacked
            a = torch.randn(self.columns, self.samples, *out, dtype=torch.float64)
        a = a.to(self.dtype).transpose(0, 1)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
            a = a.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        return layer, x, a

    def truth(self) -> tuple[Tensor, Tensor]:
        """Return sums over samples and columns of squared gradients, and of gradients."""
        layer, x, a = self.problem()
        squares, sums = torch.zeros_like(layer.weight), torch.zeros_like(layer.weight)
        for b in range(self.samples):
            for k in range(self.columns):
                scalar = (layer(x[b : b + 1].double())[0] * a[b, k]).sum()
                (gradient,) = torch.autograd.grad(scalar, layer.weight)
                squares += gradient.square()
                sums += gradient
        return squares.detach(), sums

    def run(self, device: str, precision: fused.Precision = "ieee") -> tuple[Tensor, Tensor | None]:
        """Return what the kernel adds to ones, less the ones, in the weight's shape."""
        layer, x, a = self.problem()
        u = fused.patches(layer, x.to(device))
        u, a = replace(u, x=_among_nans(u.x)), _among_nans(_rows(layer, a.to(device)))
        shape = (u.shape[1], layer.weight.shape[0] // u.shape[1], u.shape[2])
        squares = torch.ones(shape, device=device)
        sums = torch.ones_like(squares) if self.with_sums else None
        with mock.patch.object(fused, "_PROGRAMS", self.programs):
            fused.fused_square_sum(a, u, squares, sums, precision=precision)
        squares = (squares - 1).view(layer.weight.shape)
        return squares, None if sums is None else (sums - 1).view(layer.weight.shape)


def _rows(layer: Layer, a: Tensor) -> Tensor:
    """Return gradients ``[B, K, ...]`` as ``[B, K, G, O, L]``."""
    if isinstance(layer, nn.Linear):
        return a.reshape(*a.shape[:2], 1, -1, a.shape[-1]).transpose(3, 4)
    return a.flatten(3).unflatten(2, (layer.groups, -1))


def _among_nans(x: Tensor) -> Tensor:
    """Return x, with the same strides, in memory that has NaN before and after it."""
    span = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    memory = x.new_full((64 + span + 64,), math.nan)
    return memory.as_strided(x.shape, x.stride(), 64).copy_(x)


CASES = [
    Case("linear without positions", lambda: nn.Linear(7, 6), (7,)),
    Case("linear", lambda: nn.Linear(7, 6), (5, 7)),
    Case("linear, two axes of positions", lambda: nn.Linear(16, 16), (2, 3, 16), columns=2),
    Case("linear, ragged tiles", lambda: nn.Linear(75, 140), (33, 75), samples=2),
    Case("linear, float16", lambda: nn.Linear(7, 6), (5, 7), dtype=torch.float16),
    Case("conv1d", lambda: nn.Conv1d(4, 6, 3, 2, padding=1, dilation=2, groups=2), (4, 13)),
    Case(
        "conv1d, circular",
        lambda: nn.Conv1d(2, 3, 4, padding="same", padding_mode="circular"), (2, 9),
    ),
    Case("conv2d", lambda: nn.Conv2d(3, 5, 3, padding=1), (3, 6, 6)),
    Case("conv2d, all odd", lambda: nn.Conv2d(2, 3, (2, 3), (2, 1), (2, 0), (1, 2)), (2, 7, 9)),
    Case(
        "conv2d, same",
        lambda: nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(2, 1)), (2, 7, 5),
    ),
    Case("conv2d, valid", lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 4)),
    Case(
        "conv2d, reflect",
        lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), (2, 5, 4),
    ),
    Case(
        "conv2d, groups",
        lambda: nn.Conv2d(6, 9, 3, stride=2, padding=1, groups=3), (6, 7, 7), columns=2,
    ),
    Case("conv2d, depthwise", lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 5, 5)),
    Case("conv2d, 1x1", lambda: nn.Conv2d(5, 4, 1), (5, 4, 4)),
    Case("conv2d, 1x1, strided", lambda: nn.Conv2d(5, 4, 1, stride=2), (5, 7, 6)),
    Case("conv2d, one position", lambda: nn.Conv2d(3, 4, 3), (3, 3, 3)),
    Case(
        "conv2d, channels_last",
        lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 6), columns=2, channels_last=True,
    ),
    Case("conv2d, 1x1, channels_last", lambda: nn.Conv2d(4, 5, 1), (4, 5, 6), channels_last=True),
    Case("conv2d, columns", lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6), columns=3),
    Case("conv2d, ragged tiles", lambda: nn.Conv2d(9, 67, 3, padding=1), (9, 7, 6), samples=2),
    Case(
        "conv2d, few programs",
        lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6), samples=5, columns=2, programs=3,
    ),
    Case(
        "conv2d, groups, few programs",
        lambda: nn.Conv2d(6, 4, 3, groups=2), (6, 6, 6), samples=5, programs=4,
    ),
    Case(
        "conv2d, without sums",
        lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6), with_sums=False, programs=2,
    ),
    Case(
        "conv2d, float16",
        lambda: nn.Conv2d(3, 5, 3, padding=1), (3, 6, 6), columns=2, dtype=torch.float16,
    ),
]  # fmt: skip


if __name__ == "__main__":
    results: dict[str, Tensor] = {}
    for case in CASES:
        squares, sums = case.run("cpu")
        results[f"{case.name}: squares"] = squares
        if sums is not None:
            results[f"{case.name}: sums"] = sums
    save_file(results, Path(sys.argv[1]))
