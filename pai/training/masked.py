"""Keeping pruned weights at exactly zero, whatever the optimizer does."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class PrunedWeights:
    """The masked parameters of a model and the operation that zeroes them, fused over all.

    Masking gradients would not be enough: momentum and weight decay still move a weight. So the
    weights themselves are multiplied by the mask after each step. A weight that is NaN or infinite
    stays NaN, pruned or not: the next loss is NaN then, and the run ends.
    """

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        pruned = {name: keep for name, keep in mask.items() if not bool(keep.all())}
        self._weights: list[Tensor] = [parameters[name] for name in pruned]
        self._masks: list[Tensor] = [  # in the memory layout of the weights: faster
            torch.empty_like(parameters[name], requires_grad=False).copy_(keep)
            for name, keep in pruned.items()
        ]

    @torch.no_grad()
    def zero(self) -> None:
        """Set every pruned weight to zero."""
        if self._weights:
            torch._foreach_mul_(self._weights, self._masks)

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Set the gradient of every pruned weight to zero: it is no part of the network's."""
        present = [
            (weight.grad, keep)
            for weight, keep in zip(self._weights, self._masks, strict=True)
            if weight.grad is not None
        ]
        if present:
            torch._foreach_mul_([grad for grad, _ in present], [keep for _, keep in present])
