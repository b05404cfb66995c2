"""The options of a training run."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pai.distributed import launched
from pai.errors import ConfigError
from pai.models.batchnorm import check_batchnorms
from pai.training.lr_schedules import LRSchedule
from pai.training.optimizers import OptimizerBuilder

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Training:
    """How the masked network is trained; ``epochs=0`` only scores, masks and evaluates.

    Attributes:
        epochs: passes over the train part.
        batch_size: samples per optimization step: images, sequences, nodes.
        optimizer: builds the optimizer.
        lr_schedule: the factor on its learning rate.
        label_smoothing: share of the target that is spread evenly over all classes (Szegedy et
            al. 2016, arXiv 1512.00567).
        mixup_alpha: parameter of the Beta distribution of mixup (:mod:`pai.training.mixup`);
            0 is off; for images only.
        clip_grad_norm: upper bound of the L2 norm of the gradient of all parameters together,
            pruned weights not counted; ``None`` is off.
        precision: number format of activations in training and evaluation. Weights, optimizer
            state and loss are float32 in any case; ``bfloat16`` is torch's autocast.
        channels_last: memory layout of images, activations and convolution kernels; changes speed
            and the order of summation, nothing else.
        compile: run training steps through ``torch.compile``; the first step of each batch size
            takes a minute, the others are faster. Evaluation is not compiled.
        evaluation_batch_size: samples at once in evaluation.
        sync_batchnorm: with several processes, BatchNorm uses the statistics of the whole batch
            instead of each process's share; on GPUs only.

    With several processes (``torchrun``) both batch sizes count the samples of all of them.
    """

    epochs: int
    batch_size: int
    optimizer: OptimizerBuilder
    lr_schedule: LRSchedule
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    clip_grad_norm: float | None = None
    precision: Precision = "float32"
    channels_last: bool = True
    compile: bool = False
    evaluation_batch_size: int = 512
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, OptimizerBuilder):
            raise ValueError(f"optimizer: {self.optimizer!r} builds no optimizer")
        if not isinstance(self.lr_schedule, LRSchedule):
            raise ValueError(f"lr_schedule: {self.lr_schedule!r} is no learning-rate schedule")
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}")
        if self.evaluation_batch_size < 1:
            raise ValueError(
                f"evaluation_batch_size must be at least 1, got {self.evaluation_batch_size}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0 <= self.mixup_alpha < float("inf"):
            raise ValueError(f"mixup_alpha must be finite and >= 0, got {self.mixup_alpha}")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm must be positive or null, got {self.clip_grad_norm}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {self.precision!r}")

    def check(self, device: torch.device) -> None:
        """Raise :class:`ConfigError` if these options cannot work on ``device``."""
        compiler = os.environ.get("CXX", "g++")
        if self.compile and device.type == "cpu" and shutil.which(compiler) is None:
            raise ConfigError(
                f"training.compile: needs a C++ compiler, and {compiler!r} is not there; install "
                f"one, name it in the environment variable CXX, or set training.compile=false"
            )
        if self.sync_batchnorm and device.type != "cuda":
            raise ConfigError(
                f"training.sync_batchnorm: torch synchronises BatchNorm on CUDA devices only, not "
                f"on {device.type}; set it to false"
            )
        for name, size, least in (
            ("batch_size", self.batch_size, 2 * launched()),
            ("evaluation_batch_size", self.evaluation_batch_size, launched()),
        ):
            if size < least:
                raise ConfigError(
                    f"training.{name}: {size} samples cannot be shared by {launched()} processes; "
                    f"use {least} or more"
                )

    def check_network(self, model: nn.Module) -> None:
        """Raise :class:`ConfigError` if these options cannot work with ``model``."""
        if self.sync_batchnorm:
            try:
                check_batchnorms(model)
            except ValueError as error:
                raise ConfigError(f"training.sync_batchnorm: {error}") from error

    def remarks(self) -> list[str]:
        """Return what is allowed and hardly meant, one line each."""
        found = []
        warmup = getattr(self.lr_schedule, "warmup_epochs", 0.0)
        if 0 < self.epochs <= warmup:
            found.append(
                f"the learning rate rises until the training ends: training.lr_schedule."
                f"warmup_epochs={warmup:g} of training.epochs={self.epochs}; a shorter warmup "
                f"reaches the full rate"
            )
        milestones = list(getattr(self.lr_schedule, "milestones", ()))
        if 0 < self.epochs <= max(milestones, default=0):
            found.append(
                f"the learning rate does not fall at every milestone: "
                f"training.lr_schedule.milestones={milestones} of training.epochs={self.epochs}"
            )
        return found

    def fitted_to(self, model: nn.Module) -> "Training":
        """Return the options without ``channels_last`` where torch would corrupt memory with it.

        That is the backward pass, on a CPU, of a 1x1 convolution with a stride and fewer than 16
        input channels (seen in torch 2.11 and 2.15, in processors with AVX-512).
        """
        narrow = any(
            isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
            and layer.in_channels < 16 and layer.weight.device.type == "cpu"
            for layer in model.modules()
        )  # fmt: skip
        return replace(self, channels_last=False) if narrow else self

    def run(self, network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Return the float32 logits of ``inputs`` in this precision, images in this layout."""
        if inputs.ndim == 4:
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            inputs = inputs.contiguous(memory_format=layout)
        reduced = self.precision == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=reduced):
            return network(inputs).float()
