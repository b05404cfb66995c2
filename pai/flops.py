"""What one forward pass costs, dense and masked.

Counted are the multiplications and additions of matrix products, convolutions and attention, by the
formulas of ``torch.utils.flop_counter``: one multiply-accumulate is 2 FLOPs. Norms, activations and
additions are not counted. A product with a masked parameter is counted at the share of weights that
the mask keeps: the work that would be left if zeros cost nothing. It is a theoretical number; the
training here multiplies with the zeros too. Recurrent layers are counted by the matrix products
that they consist of, bilinear ones by a formula here; the parameters of other operations that have
no formula are named.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pai.state import scoring_mode

_aten = torch.ops.aten
# Operations on matrices that are no products, beside those on single elements; and norms.
_NO_PRODUCTS = (
    _aten.embedding, _aten.index, _aten.index_select, _aten.gather, _aten.cat, _aten.stack,
    _aten.copy_, _aten.native_layer_norm, _aten.native_group_norm, _aten.native_batch_norm,
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """FLOPs of one forward pass of one sample (2 per multiply-accumulate) and parameters.

    ``uncounted`` names matrices that went into an operation whose FLOPs are not known.
    """

    forward_flops_dense: int
    forward_flops_masked: int
    parameters_dense: int
    parameters_kept: int
    uncounted: list[str]


def forward_cost(model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor) -> Cost:
    """Count FLOPs and parameters of ``model``, dense and with ``mask``.

    A masked parameter is recognised by its memory, so packed projections of attention, parts of
    them and tied weights count; weights that are computed from parameters (weight norm) count as
    dense.

    Args:
        model: run once in eval mode, without gradients; not changed.
        mask: by parameter name.
        inputs: a batch; its first sample is run.
    """
    parameters = dict(model.named_parameters())
    counter = _Counter(parameters, mask)
    with scoring_mode(model), torch.no_grad(), _products(model), counter:
        model(inputs[:1])
    everything = sum(p.numel() for p in parameters.values())
    pruned = sum(int((~keep).sum()) for keep in mask.values())
    uncounted = [name for name in parameters if name in counter.uncounted]
    return Cost(counter.dense, round(counter.masked), everything, everything - pruned, uncounted)


@contextmanager
def _products(model: nn.Module) -> Iterator[None]:
    """Let attention and recurrent layers run as the matrix products that they consist of."""
    libraries: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    before = [library.enabled for library in libraries]
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled and not recurrent
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


class _Counter(TorchDispatchMode):
    """Adds up the FLOPs of the operations that run inside it."""

    def __init__(self, parameters: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.dense, self.masked = 0, 0.0
        self.uncounted: set[str] = set()
        self._bits: dict[int, Tensor] = {}
        for name, keep in mask.items():
            memory = parameters[name].untyped_storage()
            size = memory.nbytes() // parameters[name].element_size()
            bits = self._bits.setdefault(
                memory.data_ptr(), torch.ones(size, dtype=torch.bool, device=keep.device)
            )
            _same_place(bits, parameters[name]).copy_(keep)
        self._matrices: dict[int, dict[str, range]] = {}
        for name, parameter in parameters.items():
            if parameter.ndim > 1:
                begin = parameter.storage_offset()
                of_memory = self._matrices.setdefault(parameter.untyped_storage().data_ptr(), {})
                of_memory[name] = range(begin, begin + parameter.numel())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operands = [
            leaf
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided
        ]
        flops = _flops(func, args, kwargs, out)
        if flops is not None:
            self.dense += flops
            self.masked += flops * min(map(self._kept, operands), default=1.0)
        elif len(operands) > 1 and _may_multiply(func):
            for operand in (each for each in operands if each.ndim > 1):
                matrices = self._matrices.get(operand.untyped_storage().data_ptr(), {})
                self.uncounted |= {
                    name for name, own in matrices.items() if operand.storage_offset() in own
                }
        return out

    def _kept(self, operand: Tensor) -> float:
        """Return the share of the weights in the memory of ``operand`` that the mask keeps."""
        bits = self._bits.get(operand.untyped_storage().data_ptr())
        if bits is None or operand.numel() == 0:
            return 1.0
        if operand.untyped_storage().nbytes() // operand.element_size() != bits.numel():
            return int(bits.sum()) / bits.numel()  # other elements: parts of complex numbers
        return int(_same_place(bits, operand).sum()) / operand.numel()


def _same_place(bits: Tensor, tensor: Tensor) -> Tensor:
    """Return the bits of the elements of ``tensor``; ``bits`` has one for each in its storage."""
    return bits.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def _flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int | None:
    """Return the FLOPs of an operation, or ``None`` if there is no formula."""
    if func.overloadpacket is _aten._trilinear:
        return _trilinear(args[:3], args[3:6], args[6])
    formula: Any = flop_registry.get(func.overloadpacket)
    return None if formula is None else int(formula(*args, **kwargs, out_val=out))


def _trilinear(factors: Sequence[Tensor], new: Sequence[list[int]], summed: list[int]) -> int:
    """Return the FLOPs of a sum of products of three ``factors``, which ``nn.Bilinear`` is.

    They get ``new`` axes each and are broadcast. The ``summed`` axes are contracted one after the
    other, the longest first, which is cheapest.
    """
    shapes = []
    for tensor, axes in zip(factors, new, strict=True):
        shape = list(tensor.size())
        for axis in axes:
            shape.insert(axis, 1)
        shapes.append(shape)
    whole = torch.broadcast_shapes(*shapes)
    products, left = 0, math.prod(whole)
    for length in sorted((whole[axis] for axis in summed), reverse=True):
        products += left
        left //= max(1, length)
    return 2 * products


def _may_multiply(func: Any) -> bool:
    single = torch.Tag.pointwise in func.tags or func.is_view
    return not single and func.overloadpacket not in _NO_PRODUCTS
