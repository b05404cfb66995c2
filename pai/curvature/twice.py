"""The surroundings of a pass whose derivatives are differentiated again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pai.curvature.convolution import FastSecondDerivatives


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Let what is computed in the block have second derivatives, and fast ones.

    Torch's fused attention kernels and its hard sigmoid have none, its convolutions slow ones.
    Derivatives too are to be taken in the block: parts of a network that are checkpointed are
    computed again then.
    """
    with sdpa_kernel(SDPBackend.MATH), _HardSigmoid(), FastSecondDerivatives():
        yield


class _HardSigmoid(TorchFunctionMode):
    """``hardsigmoid(x) = relu6(x + 3) / 6``, which torch can differentiate twice."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        if func is F.hardsigmoid:
            return _hard_sigmoid(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _hard_sigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    out = F.relu6(input + 3) / 6
    return input.copy_(out) if inplace else out
