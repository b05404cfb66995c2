"""Means over samples of squared per-sample gradients, from batched backward passes.

Layers with a rule (``rules.py``) take part in batched passes (``recording.py``). A parameter that
no rule covers, or for which the rules disagree with autograd on some samples (a layer that
transforms its weight, a weight used outside its module, a layer whose input has no axis of samples,
as in graph networks), takes the slow path: one backward pass per sample. So do all parameters of a
model that selects by the values of its tensors. It is announced, never skipped.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pai.curvature.recording import Sums, recording
from pai.memory import chunks
from pai.objective import Batches
from pai.parallel import add_up
from pai.precision import rounding

COPIES = 2.0  # peak memory in units of a plain backward pass
_TRIALS = 2  # samples on which a rule is compared with autograd at a time
_AGREEMENT = 1e-3  # relative difference to autograd above which a rule is not trusted

Pullbacks = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""From the model's output and targets of B samples to scalars, each the sum over those samples of
one function per sample; the squared per-sample gradients of all of them are added up."""


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
    rules = Trial(model, parameters, trial)
    samples = 0
    for batch in chunks(model, batches, copies=COPIES):
        rules.look(batch)
        add_per_sample_sums(total, model, batch, parameters, pullbacks, rules)
        samples += len(batch[1])
    samples = add_up((total.squares, total.gradients or {}), samples)
    for value in total.squares.values():
        value.clamp_(min=0).div_(samples)  # a zero may have come out as a rounding error below
    for value in (total.gradients or {}).values():
        value.div_(samples)
    return total


class Trial:
    """Finds out for which parameters the per-sample rules can be trusted.

    A rule's sum of squares over a few samples is compared with autograd's, sample by sample. They
    are the first samples; a parameter whose gradients are zero there is tried again in every batch,
    on the first samples of it whose gradient is not.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], pullbacks: Pullbacks
    ) -> None:
        """Take a deterministic pullback."""
        self._model = model
        self._pullbacks = pullbacks
        self._untried = dict(parameters)
        self._slow: set[str] = set()
        self._begun = False
        self._alone: dict[str, nn.Parameter] = {}  # tried on one sample, which cannot mix with any

    def is_slow(self, name: str) -> bool:
        """Return whether no rule can be trusted for the parameter."""
        return name in self._slow

    def distrust(self, names: Iterable[str]) -> None:
        """Take the slow path from now on; warns, naming the parameters, if that is new."""
        new = [name for name in names if name not in self._slow]
        if new:
            warnings.warn(
                f"no fast per-sample rule for {', '.join(new)}: one backward pass per sample "
                f"instead", stacklevel=2,
            )  # fmt: skip
        self._slow.update(new)
        for name in new:
            self._untried.pop(name, None)
            self._alone.pop(name, None)

    def look(self, batch: tuple[Tensor, Tensor]) -> None:
        """Try what has not been tried yet on samples of ``batch``."""
        if not self._begun and _selects_by_data(self._model, batch[0][:_TRIALS]):
            self.distrust(list(self._untried))
        self._begun = True
        if len(batch[1]) > 1:
            self._untried |= self._alone
            self._alone = {}
        first: int | None = 0
        while self._untried and first is not None:
            before, compared = len(self._untried), first
            self._compare(batch, first)
            first = self._first_alive(batch) if self._untried else None
            if first == compared and len(self._untried) == before:
                break  # a gradient so small that its square is zero

    def _compare(self, batch: tuple[Tensor, Tensor], first: int) -> None:
        """Try on the samples from ``first`` on; what has a gradient there is tried then."""
        chosen = [part[first : first + _TRIALS] for part in batch]
        if len(chosen[0]) == 1:  # what sums over samples would not be seen with one
            chosen = [torch.cat([part, part]) for part in chosen]
        some = (chosen[0], chosen[1])
        ruled, truth = (Sums.zeros(self._untried, with_gradients=False) for _ in range(2))
        refused = _add_by_rules(ruled, self._model, some, self._untried, self._pullbacks)
        tried = {name: p for name, p in self._untried.items() if name not in refused}
        if tried:
            _one_by_one(self._model, some, tried, self._pullbacks, truth)
        wrong = []
        for name, parameter in tried.items():
            expected, found = truth.squares[name], ruled.squares[name]
            allowed = max(_AGREEMENT, 8 * rounding(parameter.dtype)) * expected.norm()
            if (found - expected).norm() > allowed:
                wrong.append(name)
            elif expected.any():
                del self._untried[name]
                if len(batch[1]) == 1:
                    self._alone[name] = parameter
        self.distrust([name for name in self._untried if name in refused or name in wrong])

    def _first_alive(self, batch: tuple[Tensor, Tensor]) -> int | None:
        """Return the first sample for which a parameter that is untried has a gradient."""
        inputs, targets = batch
        if not self._has_gradient(inputs, targets):
            return None
        return next(
            (
                n for n in range(len(targets))
                if self._has_gradient(inputs[n : n + 1], targets[n : n + 1])
            ),
            None,
        )  # fmt: skip

    def _has_gradient(self, inputs: Tensor, targets: Tensor) -> bool:
        """Return whether a parameter that is untried has a gradient for one of these samples."""
        outputs = self._model(inputs)
        for scalar in self._pullbacks(outputs, targets):
            if not scalar.requires_grad:
                continue
            (slope,) = torch.autograd.grad(
                scalar, outputs, retain_graph=True, materialize_grads=True
            )
            # weights of their own, so that the gradients of several samples do not cancel
            weights = torch.linspace(1, 2, len(inputs), dtype=slope.dtype, device=slope.device)
            slope = slope * weights.view(-1, *[1] * (slope.ndim - 1)).cos()
            values = torch.autograd.grad(
                outputs, list(self._untried.values()), slope, retain_graph=True,
                materialize_grads=True,
            )  # fmt: skip
            if any(bool(value.any()) for value in values):
                return True
        return False


_SELECTIONS = (
    torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere, torch.masked_select,
    Tensor.masked_select, torch.unique, Tensor.unique, torch.unique_consecutive,
    Tensor.unique_consecutive, torch.sort, Tensor.sort, torch.argsort, Tensor.argsort, torch.topk,
    Tensor.topk, torch.bincount, Tensor.bincount, Tensor.tolist,
)  # fmt: skip


class _Selection(TorchFunctionMode):
    """Notices operations that select or order parts of tensors by the numbers in them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _SELECTIONS or (func is torch.where and len(args) == 1):
            self.seen = True
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple | list) else [args[1]]
            kinds = [part.dtype for part in index if isinstance(part, Tensor)]
            self.seen = self.seen or torch.bool in kinds or torch.uint8 in kinds
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _selects_by_data(model: nn.Module, inputs: Tensor) -> bool:
    """Return whether the model selects parts of tensors by their values (experts for tokens do).

    A layer may then see as many rows as there are samples by chance, and a rule seem to fit.
    """
    with _Selection() as selection:
        model(inputs)
    return selection.seen


def add_per_sample_sums(
    sums: Sums,
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    parameters: Mapping[str, nn.Parameter],
    pullbacks: Pullbacks,
    rules: Trial,
) -> None:
    """Add ``sum_n sum_k (grad s_kn)^2`` and ``sum_n sum_k grad s_kn`` of one batch to ``sums``.

    Call it inside :func:`pai.state.scoring_mode`.
    """
    quick = {name: p for name, p in parameters.items() if not rules.is_slow(name)}
    if quick:
        rules.distrust(_add_by_rules(sums, model, batch, quick, pullbacks))
    slow = {name: p for name, p in parameters.items() if rules.is_slow(name)}
    if slow:
        _one_by_one(model, batch, slow, pullbacks, sums)


def _add_by_rules(
    sums: Sums,
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    parameters: Mapping[str, nn.Parameter],
    pullbacks: Pullbacks,
) -> list[str]:
    """Add what the rules give; return the names for which they do not hold and added nothing."""
    inputs, targets = batch
    with recording(model, parameters, sums, len(inputs)) as recorder:
        with recorder.forward_pass():
            outputs = model(inputs)
        if recorder.names:
            for scalar in pullbacks(outputs, targets):
                if scalar.requires_grad:  # otherwise no covered layer has taken part
                    scalar.backward(retain_graph=True)
                recorder.end_function()
            recorder.end()
    return [name for name in parameters if name not in recorder.names]


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
            if not scalar.requires_grad:  # no parameter takes part
                continue
            values = torch.autograd.grad(
                scalar, list(parameters.values()), retain_graph=True, materialize_grads=True
            )
            for name, gradient in zip(parameters, values, strict=True):
                sums.squares[name] += gradient.square()
                if sums.gradients is not None:
                    sums.gradients[name] += gradient
