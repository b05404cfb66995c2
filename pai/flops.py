"""What one forward pass costs, dense and masked.

Counted are the multiplications and additions of matrix products, convolutions and attention, by the
formulas of ``torch.utils.flop_counter``: one multiply-accumulate is 2 FLOPs. Norms, activations and
additions are not counted. A product with a masked parameter is counted at the share of weights that
the mask keeps: the work that would be left if zeros cost nothing. It is a theoretical number; the
training here multiplies with the zeros too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pai.state import scoring_mode


@dataclass(frozen=True)
class Cost:
    """FLOPs of one forward pass of one sample (2 per multiply-accumulate) and parameters."""

    forward_flops_dense: int
    forward_flops_masked: int
    parameters_dense: int
    parameters_kept: int


def forward_cost(model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor) -> Cost:
    """Count FLOPs and parameters of ``model``, dense and with ``mask``.

    A masked parameter is recognised by its memory, so packed projections of attention and tied
    weights count; weights that are computed from parameters (weight norm) count as dense.

    Args:
        model: run once in eval mode, without gradients; not changed.
        mask: by parameter name.
        inputs: a batch; its first sample is run.
    """
    parameters = dict(model.named_parameters())
    density = {
        parameters[name].untyped_storage().data_ptr(): int(keep.sum()) / keep.numel()
        for name, keep in mask.items()
    }
    counter = _Counter(density)
    with scoring_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(inputs[:1])
    everything = sum(p.numel() for p in parameters.values())
    pruned = sum(int((~keep).sum()) for keep in mask.values())
    return Cost(counter.dense, round(counter.masked), everything, everything - pruned)


class _Counter(TorchDispatchMode):
    def __init__(self, density: Mapping[int, float]) -> None:
        super().__init__()
        self.dense, self.masked = 0, 0.0
        self._density = density

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula: Any = flop_registry.get(func.overloadpacket)
        if formula is not None:
            flops = formula(*args, **kwargs, out_val=out)
            self.dense += flops
            self.masked += flops * min(map(self._kept, args), default=1.0)
        return out

    def _kept(self, operand: Any) -> float:
        if not isinstance(operand, Tensor):
            return 1.0
        return self._density.get(operand.untyped_storage().data_ptr(), 1.0)
