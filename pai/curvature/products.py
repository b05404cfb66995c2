"""Sums over samples of squared products: ``sum_b sum_k (A_bk U_b^T)^2`` without storing them all.

Legend: B samples, G groups, K functions differentiated, O rows, D columns, L positions;
``A [B, G, K, O, L]``, ``U [B, G, D, L]``, sums ``[G, O, D]``.

The products hold B K times as many numbers as the weight, and writing them to memory and reading
them back would take longer than computing them. So they are made a block at a time, squared and
added while the block is in the processor's cache. With few positions the square is multiplied out
instead, ``(sum_l a_l u_l)^2 = sum_{l <= m} (2 - [l = m]) (a_l a_m) (u_l u_m)``: one matrix product
over all samples and pairs of positions, into which the sum over k goes before the multiplication.
"""

import torch
from torch import Tensor

CACHE_ELEMENTS = 2**19  # of one block of products on a CPU: 2 MiB in float32, about an L2 cache
GPU_ELEMENTS = 2**26  # of one batch of products on a GPU, where launches cost more than memory
FEW_POSITIONS = 16  # at most so many positions are worth multiplying out
_SMALL = 2**16  # weights below this take several samples per block
_FACTOR_ELEMENTS = 2**21  # of U at once on a CPU: made and used while in the last cache level
_PAIR_ELEMENTS = 2**22  # of the pairs of U's positions at once


def chunk_size(per_sample: int, device: torch.device) -> int:
    """Return of how many samples to make factors with so many elements; on a GPU of all of them."""
    return max(1, _FACTOR_ELEMENTS // max(per_sample, 1)) if device.type == "cpu" else 2**30


def add_products(a: Tensor, u: Tensor, squares: Tensor, sums: Tensor | None) -> None:
    """Add ``sum_bk (A_bk U_b^T)^2`` to ``squares`` and ``sum_bk A_bk U_b^T`` to ``sums``, if given.

    Where a square is multiplied out, rounding can leave a zero a little below zero.
    """
    weight, functions = squares.numel(), a.shape[2]
    if _better_multiplied_out(functions, a.shape[4], u.shape[2]):
        _multiplied_out(a, u, squares, sums)
    elif a.device.type != "cpu":
        _batched(a, u, squares, sums, samples=max(1, GPU_ELEMENTS // (weight * functions)))
    elif weight < _SMALL or a.shape[1] > 1:
        _batched(a, u, squares, sums, samples=max(1, CACHE_ELEMENTS // (weight * functions)))
    else:
        _blocked(a, u, squares, sums)


def _better_multiplied_out(functions: int, positions: int, columns: int) -> bool:
    """Compare K L D multiplications per row with L (L + 1) / 2 pairs of D + K; K are slow ones."""
    if positions == 1:
        return True
    pairs = positions * (positions + 1) // 2
    return positions <= FEW_POSITIONS and (
        pairs * (columns + 10 * functions) < functions * positions * columns
    )


def _multiplied_out(a: Tensor, u: Tensor, squares: Tensor, sums: Tensor | None) -> None:
    positions = a.shape[4]
    pairs = positions * (positions + 1) // 2
    samples = max(1, _PAIR_ELEMENTS // (pairs * u[0, ..., 0].numel()))
    for left, right in zip(a.split(samples), u.split(samples), strict=True):
        outer = left.permute(4, 2, 1, 0, 3).contiguous()  # [L, K, G, B, O]
        inner = right.permute(3, 1, 0, 2).contiguous()  # [L, G, B, D]
        outer_pairs = outer.new_zeros(pairs, *outer.shape[2:])
        inner_pairs = inner.new_empty(pairs, *inner.shape[1:])
        start = 0
        for p in range(positions):  # the pairs (p, p), (p, p + 1), ...
            rows = slice(start, start + positions - p)
            torch.mul(inner[p], inner[p:], out=inner_pairs[rows])
            for k in range(outer.shape[1]):
                outer_pairs[rows].addcmul_(outer[p, k].expand_as(outer[p:, k]), outer[p:, k])
            outer_pairs[start + 1 : rows.stop] *= 2
            start = rows.stop
        squares.baddbmm_(_by_group(outer_pairs).transpose(1, 2), _by_group(inner_pairs))
        if sums is not None:
            sums.baddbmm_(_by_group(outer.sum(1)).transpose(1, 2), _by_group(inner))


def _by_group(x: Tensor) -> Tensor:
    """From ``[Y, G, B, X]`` to ``[G, Y * B, X]``."""
    return x.transpose(0, 1).flatten(1, 2)


def _batched(a: Tensor, u: Tensor, squares: Tensor, sums: Tensor | None, samples: int) -> None:
    """Several samples at a time."""
    rows = a.shape[2:4]
    for left, right in zip(a.split(samples), u.split(samples), strict=True):
        product = torch.matmul(left.flatten(2, 3), right.transpose(2, 3)).unflatten(2, rows)
        if sums is not None:
            sums += product.sum((0, 2))
        squares += product.square_().sum((0, 2))


def _blocked(a: Tensor, u: Tensor, squares: Tensor, sums: Tensor | None) -> None:
    """One sample and as many rows at a time as fit into the cache; all samples for these rows."""
    rows = max(1, CACHE_ELEMENTS // squares.shape[2])
    right = u[:, 0].transpose(1, 2)
    for start in range(0, squares.shape[1], rows):
        block = squares[0, start : start + rows]
        product = torch.empty_like(block)
        for b in range(len(a)):
            for k in range(a.shape[2]):
                torch.mm(a[b, 0, k, start : start + rows], right[b], out=product)
                block.addcmul_(product, product)
                if sums is not None:
                    sums[0, start : start + rows] += product
