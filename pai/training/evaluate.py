"""Evaluation: mean loss and accuracy over a split."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pai.distributed import sum_over_processes

Predict = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats per prediction) and accuracy (fraction in 0..1)."""

    loss: float
    accuracy: float


def plain_forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the logits of ``model`` run as it is."""
    logits: Tensor = model(inputs)
    return logits


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    predict: Predict = plain_forward,
) -> Evaluation:
    """Evaluate ``model`` in eval mode; every prediction counts the same.

    That is every image or node, and every position of every sequence: targets ``[N]`` or ``[N, L]``
    of logits ``[N, C]`` or ``[N, C, L]``.

    Args:
        model: left in eval mode, otherwise unchanged.
        batches: of ``(inputs, targets)`` on the model's device; with several processes, the share
            of this one.
        predict: how the model is run (:meth:`pai.training.options.Training.run`).
    """
    model.eval()
    sums, predictions = [], 0
    for inputs, targets in batches:
        logits = predict(model, inputs)
        loss = F.cross_entropy(logits, targets, reduction="sum")
        hits = (logits.argmax(1) == targets).sum()
        sums.append(torch.stack((loss.float(), hits.float())))
        predictions += targets.numel()
    total = torch.stack(sums).cpu().double().sum(0)
    loss_sum, correct = sum_over_processes(total).tolist()
    everything = int(sum_over_processes(torch.tensor(predictions)))
    return Evaluation(loss_sum / everything, correct / everything)
