"""Ranking weights by score with exact counts; equal scores are kept in the order of position."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pai.errors import nearest

Mask = dict[str, Tensor]


def keep_highest(
    scores: Mapping[str, Tensor], count: int, within: Mapping[str, Tensor] | None
) -> Mask:
    """Return the mask of the ``count`` highest scores among those that ``within`` keeps.

    Raises:
        ValueError: ``within`` keeps fewer than ``count``.
    """
    values = flat(scores)
    if within is None:
        return unflatten(top(values, count), scores)
    allowed = flat({name: within[name] for name in scores}).to(values.device)
    candidates = torch.nonzero(allowed).flatten()
    check_kept(len(candidates), count)
    kept = torch.zeros_like(allowed)
    kept[candidates] = top(values[candidates], count)
    return unflatten(kept, scores)


def check_kept(available: int, count: int) -> None:
    """Raise ``ValueError`` if an earlier mask has left fewer weights than are to be kept."""
    if available < count:
        raise ValueError(f"within keeps {available} weights, fewer than {count}")


def check_mask(
    mask: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], what: str = "within"
) -> None:
    """Raise ``ValueError`` unless ``mask`` has a Boolean tensor for each of ``shapes``, no other.

    ``what`` names the mask in messages.
    """
    for name in mask:
        if name not in shapes:
            raise ValueError(
                f"{what}: {name!r} is in the mask and not scored here{nearest(name, shapes)}"
            )
    for name, shape in shapes.items():
        if name not in mask:
            raise ValueError(f"{what}: the mask has no {name!r}, which is scored here")
        check_bits(mask[name], name, shape, what)


def check_bits(keep: Tensor, name: str, shape: Sequence[int], what: str) -> None:
    """Raise ``ValueError`` unless ``keep`` is a Boolean tensor of this shape."""
    if tuple(keep.shape) != tuple(shape):
        raise ValueError(
            f"{what}: {name!r} has shape {tuple(keep.shape)}, the parameter has {tuple(shape)}"
        )
    if keep.dtype != torch.bool:
        raise ValueError(
            f"{what}: {name!r} is {keep.dtype}; masks are torch.bool, True for what is kept"
        )


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return all values in one row, on the device of the first, in the finest of their types."""
    first = next(iter(tensors.values()))
    dtype = first.dtype
    for value in tensors.values():
        dtype = torch.promote_types(dtype, value.dtype)
    return torch.cat([v.detach().to(first.device, dtype).flatten() for v in tensors.values()])


def unflatten(row: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut a row into tensors of the names, shapes and devices of ``like``."""
    parts = row.split([value.numel() for value in like.values()])
    return {
        name: part.view(value.shape).to(value.device)
        for (name, value), part in zip(like.items(), parts, strict=True)
    }


def top(values: Tensor, count: int) -> Tensor:
    """Return which ``count`` of ``values`` are highest; ties by position."""
    if count == len(values):
        return torch.ones_like(values, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = _threshold(values, count)
    kept = values > threshold
    tied = torch.nonzero(values == threshold).flatten()
    kept[tied[: count - int(kept.sum())]] = True
    return kept


def _threshold(values: Tensor, count: int) -> Tensor:
    """Return the ``count``-th highest value, by selection from the nearer end instead of a sort."""
    lowest = len(values) - count + 1
    if count < lowest:
        return values.topk(count, sorted=False).values.min()
    return values.topk(lowest, largest=False, sorted=False).values.max()
