"""The function every score differentiates: the mean loss over the scoring samples at ``f / T``.

Outputs are ``[N, C]``, or ``[N, C, L]`` for samples with L predictions each; targets are ``[N]`` or
``[N, L]``. The loss ``l_n`` of a sample is the mean over its own predictions.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pai.memory import chunks
from pai.parallel import add_up, require_samples
from pai.state import batch_statistics

Batches = Iterable[tuple[Tensor, Tensor]]
LossFn = Callable[[Tensor, Tensor], Tensor]
Named = dict[str, Tensor]
_COPIES = 1.0  # peak memory of a plain gradient pass in units of what it keeps
SECOND_ORDER_COPIES = 4.0  # of a pass that is differentiated again; ResNets: 2.5, ViTs: 4


def check_temperature(temperature: float) -> None:
    """Raise ``ValueError`` unless ``temperature`` is positive."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def first_inputs(batches: Batches) -> Tensor:
    """Return the inputs of the first batch, for scores that only need their shape.

    Raises:
        ValueError: there is no batch at all.
    """
    for inputs, _ in batches:
        return inputs
    raise ValueError("batches is empty: scoring needs the shape of a sample")


def mean_loss(
    outputs: Tensor, targets: Tensor, loss_fn: LossFn | None, temperature: float
) -> Tensor:
    """Return ``loss_fn(outputs / T, targets)``: a scalar, the mean over the batch.

    Raises:
        ValueError: cross-entropy was given negative targets. It would leave those positions out
            (``ignore_index``), and then the mean over a batch is not the mean of its samples.
    """
    if loss_fn is None:
        if not targets.is_floating_point() and bool((targets < 0).any()):
            raise ValueError(
                "targets are negative: positions cannot be ignored while scoring; leave them out, "
                "or give a loss_fn that is a mean over samples"
            )
        loss_fn = F.cross_entropy
    return loss_fn(outputs / temperature, targets)


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
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    samples = 0
    for inputs, targets in batches:
        loss = mean_loss(model(inputs), targets, loss_fn, temperature)
        for name, gradient in gradients(loss, parameters).items():
            total[name] += len(targets) * gradient
        samples += len(targets)
    if shared:
        samples = add_up([total], samples)
    else:
        require_samples(samples)
    return {name: value / samples for name, value in total.items()}
