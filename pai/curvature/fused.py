"""Sums over samples of squared products on a GPU: ``sum_b sum_k (A_bk U_b^T)^2`` in one kernel.

Legend: B samples, K columns (gradients of one sample that share its input), G groups, O rows,
D = I * KH * KW columns of a product, L = OH * OW positions; I input channels of a group, H and W
sides of the padded input, OH and OW of the output, KH and KW of the kernel.

Neither the patches U (KH * KW times the input) nor the products (B * K times the weight) are
written to memory: a patch is read where it lies in the input, a product is squared and added where
it was computed, in registers. There are no atomic additions: the same input gives the same result,
bit for bit, on every run on one kind of device.

The tile sizes follow from the compiler's report for compute capabilities 8.0 and 9.0 (most
multiplications per instruction with next to no spilled registers). They, the number of programs and
what :func:`supports` accepts have not been timed on hardware yet.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from pai.curvature.rules import geometry, padded

Precision = Literal["ieee", "tf32", "tf32x3"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SMALLEST = 16  # rows, columns and positions of a tile that matrix units take
_PROGRAMS = 1024  # wanted at least: several on each multiprocessor of today's GPUs (up to 160)


@dataclass(frozen=True)
class Patches:
    """A layer's patches as indices into its input.

    ``U[b, g, d, l] = x[b, g, i, oh * stride[0] + kh * dilation[0], ow * stride[1] + kw *
    dilation[1]]`` with ``d = (i * KH + kh) * KW + kw`` and ``l = oh * OW + ow``.

    Attributes:
        x: the padded input ``[B, G, I, H, W]``.
        kernel: ``(KH, KW)``.
        stride: step of the positions along H and W.
        dilation: step within the kernel along H and W.
    """

    x: Tensor
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(B, G, D, L)``."""
        height, width = self.sides
        batch, groups, channels = self.x.shape[:3]
        return batch, groups, channels * self.kernel[0] * self.kernel[1], height * width

    @property
    def sides(self) -> tuple[int, int]:
        """``(OH, OW)``."""
        height, width = (
            (side - d * (k - 1) - 1) // s + 1
            for side, k, s, d in zip(
                self.x.shape[3:], self.kernel, self.stride, self.dilation, strict=True
            )
        )
        return height, width


def patches(module: nn.Linear | nn.Conv1d | nn.Conv2d, x: Tensor) -> Patches:
    """Return the patches of a layer at its input ``[B, ...]``.

    ``nn.Linear``: axes between the first and the last are positions. Convolutions: any geometry
    and padding mode. The input is copied to pad it, and also out of ``channels_last``, since the
    kernel reads neighbouring positions together.
    """
    if isinstance(module, nn.Linear):
        rows = x.reshape(len(x), 1, 1, -1, x.shape[-1])
        return Patches(rows.permute(0, 1, 4, 2, 3))
    image = padded(module, x).contiguous().unflatten(1, (module.groups, -1))
    if isinstance(module, nn.Conv1d):
        image = image.unsqueeze(3)  # of one row
    return Patches(image, *geometry(module))


def available(device: torch.device) -> bool:
    """Return whether the kernel runs there: triton, and a GPU of compute capability 8.0 or more."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and _triton_is_installed()
    )


def supports(a: Tensor, u: Patches) -> bool:
    """Return whether these factors are for :func:`fused_square_sum` on a device that has it.

    That is in float32, bfloat16 or float16, at more than one position (with one, the square of the
    product is the product of the squares, and the sum over samples a single matrix product), and
    with enough rows and columns for the smallest tile (not in depthwise convolutions).
    """
    return (
        a.dtype in _DTYPES
        and a.dtype == u.x.dtype
        and u.shape[3] > 1
        and min(a.shape[3], u.shape[2]) >= _SMALLEST
    )


def fused_square_sum(
    a: Tensor,
    u: Patches,
    squares: Tensor,
    sums: Tensor | None = None,
    *,
    precision: Precision = "ieee",
) -> None:
    """Add ``sum_bk (A_bk U_b^T)^2`` to ``squares`` and ``sum_bk A_bk U_b^T`` to ``sums``, if given.

    In float32. It takes ``2 B K G O D L`` operations, and memory for the sums of parts of the
    samples: less than 64 MiB or one copy of the weight, whichever is more (with ``sums`` twice).

    Args:
        a: gradients at the layer's output ``[B, K, G, O, L]``, of any strides.
        u: the patches of its input, in the same dtype.
        squares: ``[G, O, D]``, contiguous or not.
        sums: the same.
        precision: of float32 factors; others are multiplied exactly. ``ieee``: float32 arithmetic.
            ``tf32x3``: three products of tf32 parts on the matrix units, nearly as accurate.
            ``tf32``: one such product, 10 bits of mantissa.

    Raises:
        ValueError: dtypes that differ or that the kernel lacks.
    """
    if a.dtype != u.x.dtype or a.dtype not in _DTYPES:
        raise ValueError(
            f"a and u must both be float32, bfloat16 or float16, got {a.dtype} and {u.x.dtype}"
        )
    batch, columns, groups, rows, positions = a.shape
    width = u.shape[2]
    assert u.shape == (batch, groups, width, positions), f"{a.shape} does not fit {u.shape}"
    assert squares.shape == (groups, rows, width), f"{squares.shape} does not fit {a.shape}"
    assert max(_span(a[0, 0, 0]), _span(u.x[0, 0])) < 2**31, "one sample's offsets need 64 bits"

    matrix_units = a.dtype != torch.float32 or precision != "ieee"
    block_o, block_d, block_l, warps = _tile(rows, width, positions, matrix_units=matrix_units)
    tiles = groups * _ceil_div(rows, block_o) * _ceil_div(width, block_d)
    samples = batch * columns
    part = _ceil_div(samples, _ceil_div(_PROGRAMS, tiles))
    parts = _ceil_div(samples, part)
    work = a.new_empty((1 if sums is None else 2, parts, *squares.shape), dtype=torch.float32)
    *x_strides, x_h, x_w = u.x.stride()

    from pai.curvature.fused_kernel import square_sum

    with torch.cuda.device_of(a):
        square_sum[tiles, parts](
            a, u.x, work[0], work[-1], samples, part, columns, rows, width, positions,
            u.kernel[0] * u.kernel[1], u.kernel[1], u.sides[1], *a.stride(), *x_strides,
            u.dilation[0] * x_h, u.dilation[1] * x_w, u.stride[0] * x_h, u.stride[1] * x_w,
            SUMS=sums is not None, PRECISION=precision,
            BLOCK_O=block_o, BLOCK_D=block_d, BLOCK_L=block_l,
            num_warps=warps, num_stages=3, enable_fp_fusion=True,
        )  # fmt: skip
    squares += work[0].sum(0)
    if sums is not None:
        sums += work[1].sum(0)


def _tile(
    rows: int, width: int, positions: int, *, matrix_units: bool
) -> tuple[int, int, int, int]:
    """Return rows, columns and positions of a tile, and its warps of 32 threads."""
    block_o = _power_of_two(rows, 128 if matrix_units else 64)
    block_d = _power_of_two(width, 64)
    return block_o, block_d, _power_of_two(positions, 32), 8 if block_o * block_d > 4096 else 4


def _power_of_two(size: int, most: int) -> int:
    """Return the least power of two that is at least size, but within [_SMALLEST, most]."""
    return int(min(max(1 << (size - 1).bit_length(), _SMALLEST), most))


def _ceil_div(size: int, step: int) -> int:
    return -(-size // step)


def _span(x: Tensor) -> int:
    """Return the largest offset of an entry from the first."""
    return sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))


@cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
