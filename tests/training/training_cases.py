"""A small real data set and a small network with everything that training has to get right."""

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pai.data.augment import RandomCropFlip
from pai.data.bundle import DataBundle, Split
from pai.data.digits import Digits
from pai.training.loop import train
from pai.training.lr_schedules import Constant, Cosine, LRSchedule
from pai.training.optimizers import AdamW, OptimizerBuilder, Sgd
from pai.training.options import Training

NESTEROV = Sgd(lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True)
ADAMW = AdamW(lr=0.02, weight_decay=0.1)


@functools.cache
def digits(augmented: bool = True, train_images: int = 150) -> DataBundle:
    """150 train, 60 validation and 70 test images; augmented unless asked not to be."""
    data = Digits().load()
    train_part, val, test = (
        part.subset(torch.arange(count))
        for part, count in ((data.train, train_images), (data.val, 60), (data.test, 70))
    )
    augment = RandomCropFlip(1, horizontal_flip=True) if augmented else None
    return replace(data, train=train_part, val=val, test=test, augment=augment)


def convnet(seed: int = 0) -> nn.Sequential:
    """Convolution, BatchNorm, dropout and two linear layers for 8x8 grey images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Dropout(0.3), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 10),
        )  # fmt: skip


def plain_net(seed: int = 0) -> nn.Sequential:
    """Two linear layers and nothing random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))


def random_mask(model: nn.Module, density: float = 0.4) -> dict[str, Tensor]:
    """Keep a random share of every weight matrix and kernel."""
    stream = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(parameter.shape, generator=stream) < density
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
    }


def settings(
    epochs: int = 3, optimizer: OptimizerBuilder = NESTEROV, batch_size: int = 32,
    lr_schedule: LRSchedule | None = None, label_smoothing: float = 0.0, **others: Any,
) -> Training:  # fmt: skip
    return Training(
        epochs, batch_size, optimizer, lr_schedule or Cosine(warmup_epochs=0.5), label_smoothing,
        **others,
    )  # fmt: skip


def run(
    model: nn.Module, folder: Path, options: Training | None = None, *,
    mask: dict[str, Tensor] | None = None, data: DataBundle | None = None, seed: int = 0,
) -> tuple[dict[str, Any], list[dict[str, float]]]:  # fmt: skip
    """Train and return the result with the rows that ``on_epoch`` received."""
    rows: list[dict[str, float]] = []
    result = train(
        model, random_mask(model) if mask is None else mask, data or digits(),
        options or settings(), seed=seed, checkpoint=folder / "checkpoint.pt",
        on_epoch=rows.append,
    )  # fmt: skip
    return result, rows


def pruned_weights(model: nn.Module, mask: dict[str, Tensor]) -> Iterator[Tensor]:
    parameters = dict(model.named_parameters())
    return (parameters[name].detach()[~keep] for name, keep in mask.items())


def exact_evaluation(model: nn.Module, data: DataBundle, part: Split) -> tuple[float, float]:
    """Mean loss and accuracy over a part in one batch of float64, from the definitions."""
    images = (part.images.double() / 255 - data.mean.double().view(1, -1, 1, 1)) / (
        data.std.double().view(1, -1, 1, 1)
    )
    with torch.no_grad():
        logits = copy.deepcopy(model).double().eval()(images)
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    chosen = probability[torch.arange(len(part)), part.labels]
    return float(-chosen.log().mean()), float((logits.argmax(1) == part.labels).double().mean())


CONSTANT = Constant()
