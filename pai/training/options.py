"""The options of a training run."""

from dataclasses import dataclass

from pai.training.lr_schedules import LRSchedule
from pai.training.optimizers import OptimizerBuilder


@dataclass(frozen=True)
class Training:
    """How the masked network is trained; ``epochs=0`` only scores, masks and evaluates."""

    epochs: int
    batch_size: int
    optimizer: OptimizerBuilder
    lr_schedule: LRSchedule
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, OptimizerBuilder):
            raise ValueError(f"optimizer: {self.optimizer!r} builds no optimizer")
        if not isinstance(self.lr_schedule, LRSchedule):
            raise ValueError(f"lr_schedule: {self.lr_schedule!r} is no learning-rate schedule")
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
