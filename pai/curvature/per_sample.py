"""Means over samples of squared per-sample gradients, from batched backward passes.

Layers with a rule (``rules.py``) take part in batched passes (``recording.py``). A parameter that
no rule covers, or for which the rules disagree with autograd on a sample (a layer that transforms
its weight, a weight used outside its module, a layer whose input has no axis of samples, as in
graph networks), takes the slow path: one backward pass per sample. It is announced, never skipped.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from pai.curvature.recording import Sums, recording
from pai.memory import chunks
from pai.objective import Batches
from pai.parallel import add_up

COPIES = 2.0  # peak memory in units of a plain backward pass
_TRIALS = 4  # samples on which a rule is compared with autograd, at most
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
    fast: frozenset[str] | None = None
    samples = 0
    for batch in chunks(model, batches, copies=COPIES):
        if fast is None:
            fast = covered_by_rules(model, batch, parameters, trial)
        add_per_sample_sums(total, model, batch, parameters, pullbacks, fast)
        samples += len(batch[1])
    samples = add_up((total.squares, total.gradients or {}), samples)
    for value in total.squares.values():
        value.clamp_(min=0).div_(samples)  # a zero may have come out as a rounding error below
    for value in (total.gradients or {}).values():
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
        with recording(model, quick, sums) as recorder:
            for scalar in pullbacks(model(inputs), targets):
                if scalar.requires_grad:  # otherwise no covered layer has taken part
                    scalar.backward(retain_graph=True)
                recorder.end_function()
            recorder.end()
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
    first few: alone, and as two copies of itself, which have twice the sum of squares. (A layer
    that sees no axis of samples, but the nodes of a graph or a table, may pass the first test; in
    the second it gets the sum of the copies' gradients, and four times the square.)
    ``pullbacks`` must be deterministic here. Warns, naming the parameters, if there are others:
    those are right too, but slower.
    """
    with recording(model, parameters, Sums.zeros({}, with_gradients=False)) as recorder:
        model(batch[0][:1])
    untried = {name: p for name, p in parameters.items() if name in recorder.names}
    covered = set(untried)
    for n in range(min(_TRIALS, len(batch[1]))):
        one = (batch[0][n : n + 1], batch[1][n : n + 1])
        two = (torch.cat([one[0]] * 2), torch.cat([one[1]] * 2))
        ruled, twice, truth = (Sums.zeros(untried, with_gradients=False) for _ in range(3))
        add_per_sample_sums(ruled, model, one, untried, pullbacks, frozenset(untried))
        add_per_sample_sums(twice, model, two, untried, pullbacks, frozenset(untried))
        add_per_sample_sums(truth, model, one, untried, pullbacks, frozenset())
        for name in list(untried):
            expected = truth.squares[name]
            allowed = _AGREEMENT * expected.norm()
            off = (ruled.squares[name] - expected, twice.squares[name] / 2 - expected)
            if max(difference.norm() for difference in off) > allowed:
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
