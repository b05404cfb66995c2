"""Keeping pruned weights at exactly zero, whatever the optimizer does."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class PrunedWeights:
    """The masked parameters of a model and the operation that zeroes them, fused over all.

    Masking gradients would not be enough: momentum and weight decay still move a weight. So the
    weights themselves are multiplied by the mask after each step.
    """

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        pruned = {name: keep for name, keep in mask.items() if not bool(keep.all())}
        self._weights: list[Tensor] = [parameters[name] for name in pruned]
        self._masks = [
            keep.to(device=parameters[name].device, dtype=parameters[name].dtype)
            for name, keep in pruned.items()
        ]

    @torch.no_grad()
    def zero(self) -> None:
        """Set every pruned weight to zero."""
        if self._weights:
            torch._foreach_mul_(self._weights, self._masks)
