"""Sums over samples of squared products: ``sum_b (A_b U_b^T)^2`` without storing all products.

Legend: B samples, G groups, O rows, D columns, L positions; ``A [B, G, O, L]``, ``U [B, G, D, L]``,
sums ``[G, O, D]``.

The products hold B times as many numbers as the weight, and writing them to memory and reading them
back would take longer than computing them. So they are made a block at a time, squared and added
while the block is in the processor's cache.
"""

import torch
from torch import Tensor

CACHE_ELEMENTS = 2**19  # of one block of products on a CPU: 2 MiB in float32, about an L2 cache
GPU_ELEMENTS = 2**26  # of one batch of products on a GPU, where launches cost more than memory
_SMALL = 2**16  # weights below this take several samples per block
_FACTOR_ELEMENTS = 2**21  # of U at once on a CPU: made and used while in the last cache level


def chunk_size(weight: Tensor, grad_outputs: Tensor, groups: int) -> int:
    """Return how many samples' factors to make at once; on a GPU all of them."""
    if weight.device.type != "cpu":
        return len(grad_outputs)
    outputs = grad_outputs[0].numel()  # O * L
    per_sample = weight[0].numel() * groups * outputs // weight.shape[0]  # G * D * L
    return max(1, _FACTOR_ELEMENTS // max(per_sample, 1))


def add_products(a: Tensor, u: Tensor, squares: Tensor, sums: Tensor | None) -> None:
    """Add ``sum_b (A_b U_b^T)^2`` to ``squares`` and ``sum_b A_b U_b^T`` to ``sums``, if given."""
    weight = squares.numel()
    if a.shape[3] == 1:
        _one_position(a, u, squares, sums)
    elif a.device.type != "cpu":
        _batched(a, u, squares, sums, samples=max(1, GPU_ELEMENTS // weight))
    elif weight < _SMALL or a.shape[1] > 1:
        _batched(a, u, squares, sums, samples=max(1, CACHE_ELEMENTS // weight))
    else:
        _blocked(a, u, squares, sums)


def _one_position(a: Tensor, u: Tensor, squares: Tensor, sums: Tensor | None) -> None:
    """With one position the square of the product is the product of the squares."""
    left, right = a[..., 0].permute(1, 2, 0), u[..., 0].transpose(0, 1)  # [G, O, B], [G, B, D]
    squares.baddbmm_(left.square(), right.square())
    if sums is not None:
        sums.baddbmm_(left, right)


def _batched(a: Tensor, u: Tensor, squares: Tensor, sums: Tensor | None, samples: int) -> None:
    """Several samples at a time."""
    for left, right in zip(a.split(samples), u.split(samples), strict=True):
        product = torch.matmul(left, right.transpose(2, 3))
        if sums is not None:
            sums += product.sum(0)
        squares += product.square_().sum(0)


def _blocked(a: Tensor, u: Tensor, squares: Tensor, sums: Tensor | None) -> None:
    """One sample and as many rows at a time as fit into the cache; all samples for these rows."""
    rows = max(1, CACHE_ELEMENTS // squares.shape[2])
    right = u[:, 0].transpose(1, 2)
    for start in range(0, squares.shape[1], rows):
        block = squares[0, start : start + rows]
        product = torch.empty_like(block)
        for b in range(len(a)):
            torch.mm(a[b, 0, start : start + rows], right[b], out=product)
            block.addcmul_(product, product)
            if sums is not None:
                sums[0, start : start + rows] += product
