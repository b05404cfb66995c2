"""Selecting the weights to keep, with exact counts."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from pai.errors import nearest

Mask = dict[str, Tensor]
Scope = Literal["global", "layer"]
SCOPES: tuple[Scope, ...] = ("global", "layer")


def kept_count(sparsity: float, total: int) -> int:
    """Return ``max(1, round((1 - sparsity) * total))``, the number of weights to keep."""
    return max(1, round((1 - sparsity) * total))


def check_sparsity(sparsity: float) -> None:
    """Raise ``ValueError`` unless ``0 <= sparsity < 1``."""
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"sparsity must be at least 0 and below 1 (the fraction removed), got {sparsity}"
        )


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: Scope = "global",
    *,
    within: Mapping[str, Tensor] | None = None,
) -> Mask:
    """Return the mask that keeps the highest scores: exactly ``kept_count`` of them.

    Equal scores are kept in order of position (order of the dict, then row-major), so the same
    scores always give the same mask.

    Args:
        scores: one tensor per parameter; high = keep.
        sparsity: the fraction of weights to remove, ``0 <= sparsity < 1``.
        scope: ``"global"`` ranks all weights together; ``"layer"`` removes the same fraction of
            every parameter, at least one weight of each being kept.
        within: keep only weights that this earlier mask keeps; counts still refer to all weights.

    Returns:
        Boolean tensors (True = keep) in the shapes of the scores.

    Raises:
        ValueError: sparsity out of range, unknown scope, no scores, a NaN score, or ``within``
            keeps fewer weights than are to be kept.
    """
    check_sparsity(sparsity)
    if scope not in SCOPES:
        raise ValueError(
            f"scope: {scope!r} is not one of {', '.join(SCOPES)}{nearest(scope, SCOPES)}"
        )
    if sum(value.numel() for value in scores.values()) == 0:
        raise ValueError("scores is empty: there is nothing to select from")
    for name, value in scores.items():
        if bool(torch.isnan(value).any()):
            raise ValueError(f"scores of {name!r} contain NaN")
    if scope == "layer":
        return {
            name: _keep_highest({name: value}, sparsity, within)[name]
            for name, value in scores.items()
        }
    return _keep_highest(scores, sparsity, within)


def _keep_highest(
    scores: Mapping[str, Tensor], sparsity: float, within: Mapping[str, Tensor] | None
) -> Mask:
    dtype = max((value.dtype for value in scores.values()), key=lambda kind: torch.finfo(kind).bits)
    device = next(iter(scores.values())).device
    flat = torch.cat([value.detach().to(device, dtype).flatten() for value in scores.values()])
    count = kept_count(sparsity, flat.numel())
    if within is None:
        kept = _top(flat, count)
    else:
        allowed = torch.cat([within[name].to(device).flatten() for name in scores])
        candidates = torch.nonzero(allowed).flatten()
        if len(candidates) < count:
            raise ValueError(f"within keeps {len(candidates)} weights, fewer than {count}")
        kept = torch.zeros_like(allowed)
        kept[candidates] = _top(flat[candidates], count)
    parts = kept.split([value.numel() for value in scores.values()])
    return {
        name: part.view(value.shape).to(value.device)
        for (name, value), part in zip(scores.items(), parts, strict=True)
    }


def _top(values: Tensor, count: int) -> Tensor:
    """Return which ``count`` of ``values`` are highest; ties by position."""
    if count == len(values):
        return torch.ones_like(values, dtype=torch.bool)
    threshold = values.sort(descending=True).values[count - 1]
    kept = values > threshold
    tied = torch.nonzero(values == threshold).flatten()
    kept[tied[: count - int(kept.sum())]] = True
    return kept
