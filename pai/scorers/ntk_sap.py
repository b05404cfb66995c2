"""NTK-SAP: the weights that carry the trace of the neural tangent kernel, without data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pai.memory import samples_at_once
from pai.objective import Batches, LossFn, Named, gradients, outputs_with
from pai.parallel import common_stream, require_samples
from pai.prunable import prunable_parameters
from pai.scorers.base import Scorer
from pai.state import batch_statistics, dense_weights, kept_weights

_COPIES = 2.0  # two forward passes are kept


@dataclass(frozen=True)
class NtkSap(Scorer):
    """``|d/dm sum ||f(x; w m) - f(x; (w + epsilon xi) m)||^2|``, m the mask, x and xi gaussian.

    The sum runs over inputs ``x ~ N(0, 1)`` in the shape of the scoring batches (whose contents do
    not matter), and for each batch over ``num_draws`` draws of inputs, of ``xi ~ N(0, 1)`` for all
    weights of convolutions and linear layers, and of fresh weights. Divided by ``epsilon^2`` the
    sum estimates the trace of the neural tangent kernel of the masked network. BatchNorm normalises
    with the statistics that the unperturbed network has on the same inputs, held fixed.

    Fresh weights are each tensor's own dense weights in a random order: for weights drawn
    independently from one distribution per tensor, which is what initializations do (orthogonal
    ones excepted), that is another draw with the same values, for any module. Biases and norms
    stay as they are.

    This is one round; ``scorer=ntk_sap`` selects 20 by ``schedule=ntk_sap``, each with draws of its
    own. Source: Wang et al. 2023, arXiv 2304.02840.

    Args:
        epsilon: size of the perturbation.
        num_draws: per scoring batch.
        fresh_weights: draw weights anew; otherwise score those of the model.
    """

    epsilon: float = 0.01
    num_draws: int = 1
    fresh_weights: bool = True
    remembers: ClassVar[bool] = True
    takes_whole_numbers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {self.epsilon}")
        if self.num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {self.num_draws}")

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Take per draw a forward pass for BatchNorm, then a gradient pass through two networks."""
        stream = common_stream(generator)  # of several processes all do the same
        every = prunable_parameters(model, include_classifier=True) | dict(parameters)
        dense = dense_weights(every)
        mask: Named = {name: keep.to(dense[name]) for name, keep in kept_weights(every).items()}
        scored = {name: mask[name].requires_grad_() for name in parameters}
        total = {name: torch.zeros_like(value) for name, value in scored.items()}
        samples = 0
        for inputs, _ in batches:
            for _ in range(self.num_draws):
                weights = dict(dense)
                if self.fresh_weights:
                    weights = {n: _reordered(value, stream) for n, value in dense.items()}
                moved = {n: v + self.epsilon * _normal(v, stream) for n, v in weights.items()}
                x = _normal(inputs, stream)
                buffers = _statistics(model, weights, mask, x)
                for piece in x.split(samples_at_once(model, inputs, _COPIES)):
                    first, second = (
                        _masked(model, values, mask, buffers, piece) for values in (weights, moved)
                    )
                    change = (first - second).square().sum()
                    for name, gradient in gradients(change, scored).items():
                        total[name] += gradient
                samples += len(inputs)
        require_samples(samples)
        return {name: value.abs() for name, value in total.items()}


def _masked(model: nn.Module, weights: Named, mask: Named, buffers: Named, x: Tensor) -> Tensor:
    values = {name: weight * mask[name] for name, weight in weights.items()}
    return outputs_with(model, {**buffers, **values}, x)


def _normal(like: Tensor, stream: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=stream, dtype=like.dtype).to(like.device)


def _reordered(weight: Tensor, stream: torch.Generator) -> Tensor:
    order = torch.randperm(weight.numel(), generator=stream).to(weight.device)
    return weight.flatten()[order].view(weight.shape)


@torch.no_grad()
def _statistics(model: nn.Module, weights: Named, mask: Named, inputs: Tensor) -> Named:
    """Return the buffers of ``model`` with BatchNorm's statistics of ``inputs``."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with batch_statistics(model, store=True):
        _masked(model, weights, mask, buffers, inputs)
    return buffers
