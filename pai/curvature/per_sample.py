"""Sums over samples of squared per-sample gradients, from one batched backward pass.

A backward pass only needs the gradients at the layers' *outputs*; each layer then turns its input
and that gradient into the two factors of its per-sample weight gradients (``rules.py``), and the
squares of their products are summed (``products.py``). autograd's own weight gradients are never
computed. A parameter that no rule covers, or for which the rules disagree with autograd on a sample
(a layer that transforms its weight, a weight used outside its module), takes the slow path: one
backward pass per sample. It is announced, never skipped.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pai.curvature.products import add_products, chunk_size
from pai.curvature.rules import RULES, Factors
from pai.objective import Batches, Named, sized

_TRIALS = 4  # samples on which a rule is compared with autograd, at most
_AGREEMENT = 1e-3  # relative difference to autograd above which a rule is not trusted

Pullbacks = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""From the model's output and targets of B samples to scalars, each the sum over those samples of
one function per sample; the squared per-sample gradients of all of them are added up."""


@dataclass
class Sums:
    """Sums over samples: of squared gradients and, where asked for, of gradients."""

    squares: Named
    gradients: Named | None

    @classmethod
    def zeros(cls, parameters: Mapping[str, Tensor], *, with_gradients: bool) -> "Sums":
        """Return sums of nothing."""

        def zeros() -> Named:
            contiguous = torch.contiguous_format  # also for weights in channels_last
            return {n: torch.zeros_like(p, memory_format=contiguous) for n, p in parameters.items()}

        return cls(zeros(), zeros() if with_gradients else None)


def per_sample_means(
    model: nn.Module,
    batches: Batches,
    parameters: Mapping[str, nn.Parameter],
    pullbacks: Pullbacks,
    *,
    trial: Pullbacks,
    with_gradients: bool,
) -> Sums:
    """Return means over all samples in place of sums, the same whatever the batch size.

    ``trial`` is a deterministic pullback: on it the rules are compared with autograd first.
    """
    total = Sums.zeros(parameters, with_gradients=with_gradients)
    fast: frozenset[str] | None = None
    samples = 0
    for inputs, targets, count in sized(batches):
        batch = (inputs, targets)
        if fast is None:
            fast = covered_by_rules(model, batch, parameters, trial)
        add_per_sample_sums(total, model, batch, parameters, pullbacks, fast)
        samples += count
    for named in (total.squares, total.gradients or {}):
        for value in named.values():
            value.div_(samples)
    return total


def add_per_sample_sums(
    sums: Sums,
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    parameters: Mapping[str, nn.Parameter],
    pullbacks: Pullbacks,
    fast: frozenset[str],
) -> None:
    """Add ``sum_n sum_k (grad s_kn)^2`` and ``sum_n sum_k grad s_kn`` of one batch to ``sums``.

    ``fast`` names the parameters that the rules cover (:func:`covered_by_rules`). Call it inside
    :func:`pai.state.scoring_mode`.
    """
    quick = {name: p for name, p in parameters.items() if name in fast}
    slow = {name: p for name, p in parameters.items() if name not in fast}
    inputs, targets = batch
    if quick:
        with _recorded(model, quick, sums) as flush:
            for scalar in pullbacks(model(inputs), targets):
                if scalar.requires_grad:  # otherwise no covered layer has taken part
                    scalar.backward(retain_graph=True)
                flush()
    if slow:
        _one_by_one(model, batch, slow, pullbacks, sums)


def covered_by_rules(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    parameters: Mapping[str, nn.Parameter],
    pullbacks: Pullbacks,
) -> frozenset[str]:
    """Return the names whose per-sample rule agrees with autograd, sample by sample.

    Each rule is tried on the first sample for which autograd's gradient is not zero, among the
    first few. ``pullbacks`` must be deterministic here. Warns, naming the parameters, if there
    are others: those are right too, but slower.
    """
    owners = _owners(model, parameters)
    untried = {name: p for name, p in parameters.items() if name in owners}
    covered = set(untried)
    for n in range(min(_TRIALS, len(batch[1]))):
        one = (batch[0][n : n + 1], batch[1][n : n + 1])
        ruled, truth = (Sums.zeros(untried, with_gradients=False) for _ in range(2))
        add_per_sample_sums(ruled, model, one, untried, pullbacks, frozenset(untried))
        add_per_sample_sums(truth, model, one, untried, pullbacks, frozenset())
        for name in list(untried):
            expected, actual = truth.squares[name], ruled.squares[name]
            if (expected - actual).norm() > _AGREEMENT * expected.norm():
                covered.discard(name)
                del untried[name]
            elif expected.any():
                del untried[name]
        if not untried:
            break
    slow = [name for name in parameters if name not in covered]
    if slow:
        warnings.warn(
            f"no fast per-sample rule for {', '.join(slow)}: one backward pass per sample instead",
            stacklevel=2,
        )
    return frozenset(covered)


def _owners(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, list[nn.Module]]:
    """Return, by parameter name, the modules with a rule whose ``weight`` it is."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    owners: dict[str, list[nn.Module]] = {}
    for module in model.modules():
        if type(module) in RULES and id(module.weight) in names:
            owners.setdefault(names[id(module.weight)], []).append(module)
    return owners


@dataclass
class _Uses:
    """How often a weight was used in one forward pass, and the factors of uses seen so far."""

    count: int = 0
    factors: list[Factors] = field(default_factory=list)


@contextmanager
def _recorded(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], sums: Sums
) -> Iterator[Callable[[], None]]:
    """Hook the layers so that a backward pass adds to ``sums``; call the yielded after each."""
    uses = {name: _Uses() for name in parameters}

    def watch(name: str, module: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        uses[name].count += 1
        version = x._version

        def on_gradient(grad: Tensor) -> None:
            if x._version != version:
                raise RuntimeError(
                    f"the input of the layer with weight {name!r} was modified in place after "
                    f"use; per-sample gradients need it unchanged"
                )
            receive(name, module, x.detach(), grad.detach())

        if not out.requires_grad:  # the first layer of the graph: autograd starts here
            out = out.requires_grad_().clone()
        out.register_hook(on_gradient)
        return out

    def receive(name: str, module: nn.Module, x: Tensor, grad: Tensor) -> None:
        rule = RULES[type(module)]
        if uses[name].count > 1:
            uses[name].factors.append(rule(module, x, grad))
            return
        size = chunk_size(parameters[name], grad, getattr(module, "groups", 1))
        for xs, grads in zip(x.split(size), grad.split(size), strict=True):
            _add(sums, name, rule(module, xs, grads))

    def flush() -> None:
        for name, use in uses.items():
            if use.factors:
                lefts, rights = zip(*use.factors, strict=True)
                _add(sums, name, (torch.cat(lefts, 3), torch.cat(rights, 3)))
                use.factors = []

    hooks = [
        module.register_forward_hook(
            lambda module, args, out, name=name: watch(name, module, args[0], out)
        )
        for name, modules in _owners(model, parameters).items()
        for module in modules
    ]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield flush
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for hook in hooks:
            hook.remove()


def _add(sums: Sums, name: str, factors: Factors) -> None:
    a, u = factors
    shape = (a.shape[1], a.shape[2], u.shape[2])
    gradients = None if sums.gradients is None else sums.gradients[name].view(shape)
    add_products(a, u, sums.squares[name].view(shape), gradients)


def _one_by_one(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    parameters: Mapping[str, nn.Parameter],
    pullbacks: Pullbacks,
    sums: Sums,
) -> None:
    """Take the slow path: correct for any model whose samples do not influence each other."""
    inputs, targets = batch
    for n in range(len(targets)):
        for scalar in pullbacks(model(inputs[n : n + 1]), targets[n : n + 1]):
            values = torch.autograd.grad(
                scalar, list(parameters.values()), retain_graph=True, materialize_grads=True
            )
            for name, gradient in zip(parameters, values, strict=True):
                sums.squares[name] += gradient.square()
                if sums.gradients is not None:
                    sums.gradients[name] += gradient
