"""Evaluation: mean loss and accuracy over a split."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats per sample) and accuracy (fraction in 0..1)."""

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Evaluate ``model`` in eval mode; every sample counts the same."""
    model.eval()
    loss, correct, samples = 0.0, 0, 0
    for inputs, targets in batches:
        logits = model(inputs)
        loss += float(F.cross_entropy(logits, targets, reduction="sum"))
        correct += int((logits.argmax(1) == targets).sum())
        samples += len(targets)
    return Evaluation(loss / samples, correct / samples)
