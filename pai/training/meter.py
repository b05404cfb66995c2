"""Loss and accuracy of an epoch without waiting for the device at every step."""

import math

import torch
from torch import Tensor

from pai.distributed import sum_over_processes
from pai.errors import RunError

CHECK_EVERY = 50
"""Steps after which the losses are fetched from the device and checked."""


class Meter:
    """Sums the loss and the correct predictions of an epoch's steps.

    A sequence counts as many predictions as it has positions, an image or a node as one.

    The numbers stay on the device and are fetched every :data:`CHECK_EVERY` steps; until then a
    GPU is never waited for. With several processes they are summed over all, so that all find a
    bad loss at the same step.
    """

    def __init__(self, epoch: int, steps_before: int = 0) -> None:
        self._epoch = epoch
        self._waiting: list[tuple[Tensor, Tensor, int]] = []
        self._loss_sum, self._correct = 0.0, 0.0
        self.predictions, self._steps = 0, steps_before

    def add(self, loss: Tensor, correct: Tensor, predictions: int) -> None:
        """Take the mean loss of a step and how many of its ``predictions`` were right.

        Raises:
            RunError: one of the losses since the last check is NaN or infinite.
        """
        self._waiting.append((loss.detach(), correct, predictions))
        if len(self._waiting) == CHECK_EVERY:
            self._fetch()

    def means(self) -> tuple[float, float]:
        """Return the mean loss and accuracy over all predictions; errors as in :meth:`add`."""
        self._fetch()
        return self._loss_sum / self.predictions, self._correct / self.predictions

    def _fetch(self) -> None:
        if not self._waiting:
            return
        losses, correct, sizes = zip(*self._waiting, strict=True)
        counts = torch.tensor(sizes, dtype=torch.float64)
        sums = torch.stack((torch.stack(losses).cpu() * counts, torch.stack(correct).cpu(), counts))
        for loss_sum, right, count in sum_over_processes(sums).T.tolist():
            self._steps += 1
            mean = loss_sum / count
            check_finite("training", mean, f"epoch {self._epoch + 1}, step {self._steps}")
            self._loss_sum += loss_sum
            self._correct += right
            self.predictions += int(count)
        self._waiting.clear()


def check_finite(part: str, loss: float, when: str) -> None:
    """Raise :class:`RunError` if ``loss`` is NaN or infinite."""
    if not math.isfinite(loss):
        raise RunError(
            f"the {part} loss became {loss} in {when}; a lower training.optimizer.lr may help"
        )
