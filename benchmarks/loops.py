"""The two loops that `benchmarks/training.py` compares, on the same networks, images and recipe.

The plain loop is what scripts usually do: float32, PIL images through torchvision transforms in a
``DataLoader`` with two workers, torch's default optimizer, ``loss.item()`` at every step.
"""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import pai
from pai.data.augment import RandomCropFlip
from pai.data.bundle import DataBundle, Split
from pai.training.evaluate import evaluate
from pai.training.loop import train
from pai.training.lr_schedules import Constant, Cosine
from pai.training.meter import Meter
from pai.training.optimizers import Sgd
from pai.training.options import Training
from pai.training.step import MaskedStep

Steps = Iterator[int]  # each step yields how many images it was
LR, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
SCHEDULE = Cosine(warmup_epochs=1)
OPTIONS: dict[str, dict[str, Any]] = {
    "pai float32, contiguous": {"channels_last": False},
    "pai float32": {},
    "pai float32, compile": {"compile": True},
    "pai bfloat16": {"precision": "bfloat16"},
    "pai bfloat16, compile": {"precision": "bfloat16", "compile": True},
}


def make_mask(model: nn.Module, density: float = 0.1) -> dict[str, Tensor]:
    """Return a random mask that keeps ``density`` of each prunable weight."""
    stream = torch.Generator().manual_seed(0)
    return {
        name: (torch.rand(p.shape, generator=stream) < density).to(p.device)
        for name, p in pai.prunable_parameters(model).items()
    }


def random_bundle(images: int) -> DataBundle:
    """Return random images of CIFAR-10's shapes."""
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), generator=stream, dtype=torch.uint8)
    split = Split(pixels, torch.arange(images) % 10)
    return DataBundle.from_train_and_test(
        split, split, num_classes=10, val_fraction=0.1, split_seed=0,
        augment=RandomCropFlip(4, horizontal_flip=True),
    )  # fmt: skip


class PilImages(Dataset[tuple[Tensor, int]]):
    """A split as the usual data set: PIL images through torchvision's transforms."""

    def __init__(self, data: DataBundle, split: Split, *, augmented: bool) -> None:
        self.images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        chain: list[Any] = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
        if augmented and isinstance(data.augment, RandomCropFlip):
            side = self.images.shape[1]
            chain.insert(0, transforms.RandomCrop(side, data.augment.crop_padding))
            if data.augment.horizontal_flip:
                chain.insert(1, transforms.RandomHorizontalFlip())
        self.transform = transforms.Compose(chain)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.images[index]
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        return self.transform(image), self.labels[index]


def plain_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, device: torch.device
) -> Steps:
    """Train for an epoch as the usual script does."""
    model.train()
    loss_sum, correct = 0.0, 0
    for images, labels in loader:
        inputs, targets = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(inputs)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        correct += (logits.argmax(1) == targets).sum().item()
        yield len(targets)


def plain_steps(model: nn.Module, data: DataBundle, batch_size: int, device: torch.device) -> Steps:
    """Train by the plain loop without end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    images = PilImages(data, data.train, augmented=True)
    loader = DataLoader(images, batch_size, shuffle=True, num_workers=2, drop_last=True)
    while True:
        yield from plain_epoch(model, optimizer, loader, device)


def pai_steps(
    model: nn.Module, data: DataBundle, batch_size: int, options: dict[str, Any]
) -> Steps:
    """Train by pai's own loop without end."""
    chosen = Training(10**6, batch_size, Sgd(LR, MOMENTUM, DECAY), Constant(), **options)
    step = MaskedStep(model, make_mask(model), chosen)
    for epoch in itertools.count():
        model.train()
        meter = Meter(epoch)
        for inputs, targets in data.training_batches(batch_size, 0, epoch):
            if len(targets) == batch_size:
                meter.add(*step(inputs, targets, 1.0, None), len(targets))
                yield len(targets)


def train_plain(
    model: nn.Module, data: DataBundle, epochs: int, size: int, device: torch.device
) -> float:
    """Train the masked network by the plain loop and return its test accuracy."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    images = PilImages(data, data.train, augmented=True)
    loader = DataLoader(images, size, shuffle=True, num_workers=2)
    parameters, mask = dict(model.named_parameters()), make_mask(model)

    def zero() -> None:
        for name, keep in mask.items():
            parameters[name].data.mul_(keep)

    zero()
    for epoch in range(epochs):
        for step, _ in enumerate(plain_epoch(model, optimizer, loader, device)):
            zero()
            progress = epoch + (step + 1.5) / len(loader)  # of the step to come
            optimizer.param_groups[0]["lr"] = LR * SCHEDULE.factor(progress, epochs)
    test = DataLoader(PilImages(data, data.test, augmented=False), 512)
    return evaluate(model, ((x.to(device), y.to(device)) for x, y in test)).accuracy


def train_pai(
    model: nn.Module, data: DataBundle, epochs: int, size: int, seed: int, options: dict[str, Any]
) -> float:
    """Train the masked network by pai's loop and return its test accuracy."""
    chosen = Training(epochs, size, Sgd(LR, MOMENTUM, DECAY), SCHEDULE, **options)
    on_device = data.to(next(model.parameters()).device)
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            model, make_mask(model), on_device, chosen, seed=seed,
            checkpoint=Path(folder) / "checkpoint.pt", on_epoch=lambda row: None,
        )  # fmt: skip
    accuracy: float = result["metrics"]["test_accuracy"]
    return accuracy
