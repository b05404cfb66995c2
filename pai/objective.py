"""The function every score differentiates: the mean loss over the scoring samples at ``f / T``.

Outputs are ``[N, C]``, or ``[N, C, L]`` for samples with L predictions each; targets are ``[N]`` or
``[N, L]``. The loss ``l_n`` of a sample is the mean over its own predictions.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pai.memory import chunks
from pai.parallel import add_up, require_samples
from pai.state import batch_statistics
from pai.substitution import call_with

Batches = Iterable[tuple[Tensor, Tensor]]
LossFn = Callable[[Tensor, Tensor], Tensor]
Named = dict[str, Tensor]
_LOOKED_AT = 8  # samples, to see whether a loss is a mean over them
_COPIES = 1.0  # peak memory of a plain gradient pass in units of what it keeps
SECOND_ORDER_COPIES = 4.0  # of a pass that is differentiated again; ResNets: 2.5, ViTs: 4

WHOLE_BATCHES = (
    "with train_batchnorm=true batches are never cut, for their statistics; smaller ones "
    "(scoring.batch_size), fewer samples (scoring.samples_per_class) or "
    "scorer.train_batchnorm=false take less"
)
"""What to do if memory runs out although nothing can be cut."""


def check_temperature(temperature: float) -> None:
    """Raise ``ValueError`` unless ``temperature`` is positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive, got {temperature}")


def first_inputs(batches: Batches) -> Tensor:
    """Return the inputs of the first batch with samples, for what only needs their shape.

    Raises:
        ValueError: there is no batch at all, or it is none (:func:`check_batches`).
    """
    for inputs, _ in check_batches(batches):
        return inputs
    raise ValueError("batches is empty: scoring needs the shape of a sample")


def mean_loss(
    outputs: Tensor, targets: Tensor, loss_fn: LossFn | None, temperature: float
) -> Tensor:
    """Return ``loss_fn(outputs / T, targets)``: a scalar, the mean over the batch.

    Warns of a ``loss_fn`` that is no mean over samples.

    Raises:
        ValueError: the model's output is not one tensor, the loss no scalar, or cross-entropy was
            given a single output or negative targets. It would leave those positions out
            (``ignore_index``), and then the mean over a batch is not the mean of its samples.
    """
    require_tensor(outputs)
    if loss_fn is None or loss_fn is F.cross_entropy:
        require_labels(targets)
        require_classes(outputs)
        return F.cross_entropy(outputs / temperature, targets)
    loss = loss_fn(outputs / temperature, targets)
    if loss.ndim != 0:
        raise ValueError(
            f"loss_fn must return a scalar, the mean over samples; it returns shape "
            f"{list(loss.shape)} (reduction='mean'?)"
        )
    _warn_unless_mean(loss_fn, outputs.detach() / temperature, targets)
    return loss


def outputs_with(model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the model's outputs with other parameters and buffers than its own.

    Raises:
        RuntimeError: parts of the model are checkpointed, or save tensors in another way than torch
            by itself. What is computed again in the backward pass would have the model's own
            parameters.
    """
    with torch.autograd.graph.disable_saved_tensors_hooks(_CHECKPOINTED):
        outputs: Tensor = call_with(model, state, inputs)
    return outputs


_CHECKPOINTED = (
    "this score is of other weights than the model's own, and parts that are checkpointed would be "
    "computed again with its own: turn checkpointing off (timm: set_grad_checkpointing(False))"
)


def require_labels(targets: Tensor) -> None:
    """Raise ``ValueError`` if there are negative numbers among targets.

    Warns of real numbers that are no probabilities of classes.
    """
    if targets.is_floating_point():
        _require_probabilities(targets)
    elif bool((targets < 0).any()):
        raise ValueError(
            f"targets are negative ({int(targets.min())}): positions cannot be ignored while "
            f"scoring; leave them out, or give a loss_fn that is a mean over samples"
        )


def require_classes(outputs: Tensor) -> None:
    """Raise ``ValueError`` if outputs are of one class: cross-entropy is zero then."""
    if outputs.ndim > 1 and outputs.shape[1] == 1:
        raise ValueError(
            "the model has one output, of which cross-entropy is zero whatever it is; give the "
            "loss that it is trained with (loss_fn=)"
        )


def _require_probabilities(targets: Tensor) -> None:
    if bool((targets < 0).any()):
        raise ValueError(
            f"targets are real numbers below zero ({float(targets.min()):.4g}), and the loss is "
            f"cross-entropy by default; give the loss that the model is trained with (loss_fn=)"
        )
    sums = targets.sum(1) if targets.ndim > 1 else targets.new_ones(1)  # no classes: refused later
    if not bool(((sums - 1).abs() < 1e-2).all()):
        warnings.warn(
            f"targets are real numbers that do not sum to 1 (but to {float(sums.min()):.4g} up to "
            f"{float(sums.max()):.4g}), and cross-entropy takes them for probabilities of classes; "
            f"give the loss that the model is trained with (loss_fn=) if it is another",
            stacklevel=4,
        )


def require_tensor(outputs: object) -> None:
    """Raise ``ValueError`` if a model's output is not one tensor."""
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the model returns a {type(outputs).__name__}, and scoring needs one tensor: wrap the "
            f"model in a module that returns the logits alone"
        )


@torch.no_grad()
def _warn_unless_mean(loss_fn: LossFn, outputs: Tensor, targets: Tensor) -> None:
    """Warn if the loss of some samples is not the mean of their losses.

    They are spread over the batch: neighbours are often of one class, with one weight in the loss.
    """
    some = min(len(targets), _LOOKED_AT)
    if some < 2:
        return
    chosen = [n * (len(targets) - 1) // (some - 1) for n in range(some)]
    together = loss_fn(outputs[chosen], targets[chosen])
    alone = [loss_fn(outputs[n : n + 1], targets[n : n + 1]) for n in chosen]
    mean = torch.stack(alone).mean()
    if not torch.isclose(together, mean, rtol=1e-2, atol=1e-6):
        warnings.warn(
            f"loss_fn is no mean over samples (of {some}: {together:.4g} together, {mean:.4g} as "
            f"the mean of each alone): scores depend on the batch size", stacklevel=3,
        )  # fmt: skip


def magnified(temperature: float) -> float:
    """Return the power of two nearest to T, to multiply the loss by before differentiating.

    A loss at ``f / T`` has derivatives about T times smaller than at ``f``, and those of short
    floating-point numbers would end in zeros. Divided by it in the type of sums
    (:func:`sum_type`), longer numbers have the same digits as without.
    """
    return math.ldexp(1.0, round(math.log2(temperature)))


def sum_type(kind: torch.dtype) -> torch.dtype:
    """Return the type for sums over samples of numbers of a type: float32 for shorter ones."""
    return torch.promote_types(kind, torch.float32)


def zero_sums(parameters: Mapping[str, Tensor]) -> Named:
    """Return zeros for sums over samples, in the shape of each parameter, contiguous."""
    return {
        name: torch.zeros(p.shape, dtype=sum_type(p.dtype), device=p.device)
        for name, p in parameters.items()
    }


def check_batches(batches: Batches) -> Batches:
    """Return ``batches`` without those that have no samples, each looked at when it is read.

    Samples that require gradients come as constants: their ``.grad`` stays what it is.

    Raises:
        ValueError: ``batches`` can be read only once or is a single batch. On reading: inputs or
            targets are not one tensor.
    """
    if isinstance(batches, Iterator):
        raise ValueError(
            "batches can be read only once, and scoring may read them again; give a list or a "
            "DataLoader"
        )
    if isinstance(batches, tuple | list) and any(isinstance(part, Tensor) for part in batches):
        raise ValueError("batches must be a list of (inputs, targets), as in [(inputs, targets)]")
    return _Checked(batches)


@dataclass(frozen=True)
class _Checked:
    """What :func:`check_batches` returns."""

    batches: Batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                what = f"{len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
                raise ValueError(f"a batch must be a pair (inputs, targets), got {what}")
            inputs, targets = batch
            _require_one("inputs", inputs)
            if targets is not None:  # some scores need none
                _require_one("targets", targets)
            if len(inputs) > 0:
                version = None if inputs.is_inference() else inputs._version
                yield _constant(inputs), targets if targets is None else _constant(targets)
                if version is not None and inputs._version != version:
                    raise ValueError(
                        "the model changes its inputs in place, so every pass over them sees "
                        "others; let it work on a copy (x = x.clone())"
                    )


def _constant(value: Tensor) -> Tensor:
    """Return samples without the graph that made them, which is not the network's."""
    return value.detach() if value.requires_grad else value


def _require_one(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be one tensor, got {type(value).__name__}")


def gradients(
    loss: Tensor, parameters: Mapping[str, Tensor], *, create_graph: bool = False
) -> Named:
    """Return the gradient of ``loss`` for each parameter; zeros where it does not enter."""
    values = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=create_graph, materialize_grads=True
    )
    return dict(zip(parameters, values, strict=True))


def mean_gradient(
    model: nn.Module,
    batches: Batches,
    parameters: Mapping[str, Tensor],
    loss_fn: LossFn | None,
    temperature: float,
    *,
    train_batchnorm: bool = False,
) -> Named:
    """Return ``g = (1/N) sum_n grad l_n``, the same whatever the batch size.

    With ``train_batchnorm`` BatchNorm normalises with the statistics of each batch, so that the
    batch size matters: a batch is never cut into pieces, whatever memory it takes, and several
    processes all compute all of it. Call it inside :func:`pai.state.scoring_mode`.

    Raises:
        ValueError: there is no batch at all.
    """
    if not train_batchnorm:
        pieces = chunks(model, batches, copies=_COPIES)
        return _mean_gradient(model, pieces, parameters, loss_fn, temperature, shared=True)
    with batch_statistics(model):
        return _mean_gradient(model, batches, parameters, loss_fn, temperature, shared=False)


def _mean_gradient(
    model: nn.Module, batches: Batches, parameters: Mapping[str, Tensor],
    loss_fn: LossFn | None, temperature: float, *, shared: bool,
) -> Named:  # fmt: skip
    total = zero_sums(parameters)
    samples, scale = 0, magnified(temperature)
    for inputs, targets in batches:
        loss = scale * mean_loss(model(inputs), targets, loss_fn, temperature)
        for name, gradient in gradients(loss, parameters).items():
            total[name] += len(targets) * gradient.to(total[name].dtype)
        samples += len(targets)
    if shared:
        samples = add_up([total], samples)
    else:
        require_samples(samples)
    return {name: value / samples / scale for name, value in total.items()}
