"""Gradients of BatchNorm and InstanceNorm that torch reads as they are."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_BATCH_NORMS = {F.batch_norm, torch.batch_norm}
_INSTANCE_NORMS = {F.instance_norm, torch.instance_norm}


class PlainGradients(TorchFunctionMode):
    """While it is active, the gradients that reach a normalisation are contiguous.

    Torch (2.11 and 2.15) misreads those of other layouts on a CPU if the output has an axis of
    length one, as InstanceNorm's has within: of an output that is transposed, as before a layer on
    tokens or a recurrent one, the gradient is wrong.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function; watch the gradient of its result if it normalises."""
        out = func(*args, **(kwargs or {}))
        misread = func in _INSTANCE_NORMS or (func in _BATCH_NORMS and 1 in out.shape)
        if misread and out.requires_grad:
            out.register_hook(Tensor.contiguous)
        return out
