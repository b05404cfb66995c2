"""SynFlow: synaptic flow of the network with absolute weights, without data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pai.objective import Batches, LossFn, Named, gradients
from pai.scorers.base import Scorer
from pai.state import dense_weights


@dataclass(frozen=True)
class SynFlow(Scorer):
    """``|w| * dR/d|w|`` with ``R = sum of outputs`` for an input of ones and absolute weights.

    The batches only tell the input's shape. Computed in float64 on a copy of the parameters, since
    the flow through a deep network leaves the range of float32. Everything additive is zero, as in
    the paper's ``R = 1^T (prod_l |W_l|) 1``: biases, and the running means of BatchNorm, which thus
    acts as the positive scaling ``|gamma| / sqrt(running_var + eps)``. A bias would be a source of
    flow of its own and void the conservation law that prevents layer collapse (the original code
    keeps ``|bias|``; for layers without bias and with BatchNorm's initial zeros both agree).

    This is one round. The method is iterative: 100 rounds with density ``rho^(k/100)`` after round
    k, which is ``schedule=exponential``, the schedule that ``scorer=synflow`` selects by default.
    Source: Tanaka et al. 2020, arXiv 2006.05467, equation 2 and algorithm 1.
    """

    remembers: ClassVar[bool] = True

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Take one forward and one backward pass with a single input of ones."""
        inputs = next((x for x, _ in batches), None)
        if inputs is None:
            raise ValueError("batches is empty: scoring needs the shape of a sample")
        ones = torch.ones_like(inputs[:1], dtype=torch.float64)
        absolute = {
            name: p.detach().abs().double().mul(not name.endswith("bias")).requires_grad_()
            for name, p in model.named_parameters()
        }
        flow = functional_call(model, {**absolute, **_positive_buffers(model)}, (ones,)).sum()
        gradient = gradients(flow, {name: absolute[name] for name in parameters})
        return {
            name: weight.double().abs() * gradient[name].abs()
            for name, weight in dense_weights(parameters).items()
        }


def _positive_buffers(model: nn.Module) -> dict[str, Tensor]:
    buffers = {}
    for name, buffer in model.named_buffers():
        value = buffer.detach().clone()
        buffers[name] = value.double() if value.is_floating_point() else value
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            name = f"{prefix}.running_mean" if prefix else "running_mean"
            if name in buffers:
                buffers[name] = torch.zeros_like(buffers[name])
    return buffers
