"""The networks of `conf/model`, built as a run builds them."""

import inspect

import torch
from torch import nn

from pai.data.bundle import DataSpec
from pai.library import load


def build_network(
    name: str, *, num_classes: int, channels: int, size: int, device: torch.device
) -> nn.Module:
    """Return a model for square images with the weights of the global generator's state."""
    builder = load("model", name)
    spec = DataSpec(num_classes, channels, size, size, smallest_class=1)
    model: nn.Module = builder(**spec.arguments(inspect.signature(builder).parameters))
    return model.to(device)
