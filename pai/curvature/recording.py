"""Hooks that turn a backward pass into sums of squared per-sample weight gradients.

A backward pass only needs the gradients at the layers' *outputs*; each layer then turns its input
and that gradient into the two factors of its per-sample weight gradients (``rules.py``), and the
squares of their products are summed (``products.py``). autograd's own weight gradients are never
computed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pai.curvature.attention import open_attention
from pai.curvature.fused import Precision as FusedPrecision
from pai.curvature.fused import available, fused_square_sum, patches, supports
from pai.curvature.products import FEW_POSITIONS, add_products, chunk_size
from pai.curvature.rules import Rule, rule_for
from pai.objective import Named, zero_sums
from pai.precision import chosen_precision

_MANY, _SEVERAL = 32, 2  # gradients collected per layer: of layers with few positions, of others


@dataclass
class Sums:
    """Sums over samples: of squared gradients and, where asked for, of gradients."""

    squares: Named
    gradients: Named | None

    @classmethod
    def zeros(cls, parameters: Mapping[str, Tensor], *, with_gradients: bool) -> "Sums":
        """Return sums of nothing."""
        return cls(zero_sums(parameters), zero_sums(parameters) if with_gradients else None)

    def add(self, name: str, rows: slice, a: Tensor, u: Tensor) -> None:
        """Add the products of factors ``a [B, G, K, O, L]`` and ``u [B, G, D, L]``."""
        shape, kind = (a.shape[1], a.shape[3], u.shape[2]), self.squares[name].dtype
        add_products(a.to(kind), u.to(kind), *self.views(name, rows, shape))

    def views(
        self, name: str, rows: slice, shape: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Return both sums of (rows of) a weight in the shape ``[G, O, D]``."""
        gradients = None if self.gradients is None else self.gradients[name][rows].view(shape)
        return self.squares[name][rows].view(shape), gradients


@dataclass
class _Use:
    """One use of (some rows of) a weight in the forward pass, and gradients at its output."""

    name: str
    rows: slice
    module: nn.Module
    rule: Rule
    inputs: Tensor
    version: int
    gradients: list[Tensor] = field(default_factory=list)

    def check(self) -> None:
        if self.inputs._version != self.version:
            raise RuntimeError(
                f"the input of the layer with weight {self.name!r} was modified in place after "
                f"use; per-sample gradients need it unchanged"
            )


class _Uses(TorchFunctionMode):
    """Counts how often each weight is given to a function that a gradient can come back through."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._names = names

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out[0] if isinstance(out, tuple | list) and out else out
        if isinstance(made, Tensor) and torch.is_grad_enabled() and func not in _WITHOUT_GRADIENT:
            leaves = tree_leaves((args, kwargs))
            self.counts.update(self._names[id(x)] for x in leaves if id(x) in self._names)
        return out


_WITHOUT_GRADIENT = (Tensor.detach, Tensor.data.__get__)  # type: ignore[attr-defined]


class Recorder:
    """Collects the uses of weights in one forward pass and adds what backward passes bring.

    ``refused`` names weights of which a use does not fit its layer's rule, above all because the
    first axis of the input is not that of the samples (tokens that were flattened, experts that see
    some tokens, prototypes beside samples), or which are used outside their layers too. Nothing is
    added for them.
    """

    def __init__(self, sums: Sums, parameters: Mapping[str, nn.Parameter], samples: int) -> None:
        self.refused: set[str] = set()
        self.parameter_names = {id(parameter): name for name, parameter in parameters.items()}
        self._sums = sums
        self._parameters = parameters
        self._samples = samples
        self._uses: dict[tuple[str, int | None], list[_Use]] = {}
        self._seen: set[str] = set()
        self._starts: list[Tensor] = []

    @property
    def names(self) -> frozenset[str]:
        """The weights that were used by layers with rules, and only as these are for."""
        return frozenset(self._seen - self.refused)

    def watch(
        self, name: str, module: nn.Module, inputs: Any, output: Any, rows: slice = slice(None)
    ) -> Any:
        """Note that ``output`` was made from ``inputs`` and (rows of) the weight; return it."""
        self._seen.add(name)
        rule = rule_for(module)
        if rule is None or not self._fits(name, rule, inputs, output):
            self.refused.add(name)
            return output
        if not torch.is_grad_enabled():  # no gradient comes from here
            return output
        use = _Use(name, rows, module, rule, inputs.detach(), inputs._version)
        self._uses.setdefault((name, rows.start), []).append(use)
        if not output.requires_grad:  # the first layer of the graph: autograd starts here
            self._starts.append(output.requires_grad_())
            output = output.clone()
        output.register_hook(lambda gradient: self._receive(use, gradient.detach()))
        return output

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Let the forward pass run in the block: uses of weights that no layer tells are seen."""
        with _Uses(self.parameter_names) as seen:
            yield
        told = Counter(use.name for uses in self._uses.values() for use in uses)
        self.refused |= {name for name, count in seen.counts.items() if count != told[name]}

    def _fits(self, name: str, rule: Rule, inputs: Any, output: Any) -> bool:
        """Return whether the rule is for this use of the weight."""
        weight = self._parameters[name]
        if not isinstance(inputs, Tensor) or not isinstance(output, Tensor) or not weight.numel():
            return False
        if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in (inputs, output)):
            return False
        types = {output.dtype, weight.dtype, *([inputs.dtype] if rule.real_inputs else [])}
        return (
            len(types) == 1
            and inputs.ndim in rule.input_axes
            and len(inputs) == len(output) == self._samples
        )

    def end_function(self) -> None:
        """Close a backward pass: weights used several times have all their gradients now."""
        for start in self._starts:
            start.grad = None  # the next pass would add to it in place, and it may be collected
        for uses in self._uses.values():
            seen = [use for use in uses if use.gradients]  # none, of what is refused
            if len(uses) > 1 and seen:
                self._add_shared(seen)

    def end(self) -> None:
        """Add what is still collected."""
        for uses in self._uses.values():
            for use in uses:
                self._add(use)

    def _receive(self, use: _Use, gradient: Tensor) -> None:
        if use.name in self.refused:  # for a later use
            return
        use.check()
        use.gradients.append(gradient)
        alone = len(self._uses[use.name, use.rows.start]) == 1
        rows = len(self._sums.squares[use.name][use.rows])
        few = gradient[0].numel() <= FEW_POSITIONS * rows
        limit = (_MANY if few else _SEVERAL) if use.rule.reusable else 1
        if alone and len(use.gradients) >= limit:
            self._add(use)

    def _add(self, use: _Use) -> None:
        if use.gradients:
            use.check()
            if not self._add_fused(use):
                self._add_in_pieces(use)
            use.gradients = []

    def _add_fused(self, use: _Use) -> bool:
        """Add by the kernel for GPUs, if it is for this layer; return whether it is."""
        module, rule, x = use.module, use.rule, use.inputs
        if not (rule.reusable and available(x.device)):
            return False
        u = patches(cast(nn.Linear | nn.Conv1d | nn.Conv2d, module), x)
        outers = [rule.outer(module, x, grad) for grad in use.gradients]
        a = torch.stack(outers, dim=1)  # [B, K, G, O, L]
        if not supports(a, u) or a.dtype != self._sums.squares[use.name].dtype:
            return False
        shape = (a.shape[2], a.shape[3], u.shape[2])
        squares, gradients = self._sums.views(use.name, use.rows, shape)
        precision: FusedPrecision = "tf32" if chosen_precision() == "tf32" else "ieee"
        fused_square_sum(a, u, squares, gradients, precision=precision)
        return True

    def _add_in_pieces(self, use: _Use) -> None:
        module, rule, x, grads = use.module, use.rule, use.inputs, use.gradients
        one = (module, x[:1], grads[0][:1])
        size = chunk_size(max(rule.inner(*one).numel(), rule.outer(*one).numel()), x.device)
        for pieces in zip(x.split(size), *(grad.split(size) for grad in grads), strict=True):
            first = pieces[0]
            outers = [rule.outer(module, first, grad) for grad in pieces[1:]]
            outer = torch.stack(outers, dim=2) if len(outers) > 1 else outers[0].unsqueeze(2)
            self._sums.add(use.name, use.rows, outer, rule.inner(module, first, pieces[1]))

    def _add_shared(self, uses: list[_Use]) -> None:
        """Add the square of the sum over uses: their factors side by side."""
        outers, inners = [], []
        for use in uses:
            use.check()
            (gradient,) = use.gradients
            outers.append(use.rule.outer(use.module, use.inputs, gradient))
            inners.append(use.rule.inner(use.module, use.inputs, gradient))
            use.gradients = []
        a, u = torch.cat(outers, 3).unsqueeze(2), torch.cat(inners, 3)
        self._sums.add(uses[0].name, uses[0].rows, a, u)


@contextmanager
def recording(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], sums: Sums, samples: int
) -> Iterator[Recorder]:
    """Let the first forward pass in the block, of ``samples`` samples, be recorded.

    Parameters are constants in it.
    """
    recorder = Recorder(sums, parameters, samples)
    names = recorder.parameter_names

    def hook(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], out: Any) -> Any:
        name = names.get(id(module.weight))  # None: the pass has put another tensor there
        inputs = args[0] if args else options.get("input")
        return out if name is None else recorder.watch(name, module, inputs, out)

    hooks = [
        module.register_forward_hook(hook, with_kwargs=True)
        for module in model.modules()
        if rule_for(module) is not None and id(module.weight) in names
    ]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with open_attention(model, names, recorder.watch):
            yield recorder
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for handle in hooks:
            handle.remove()
