"""Loss and accuracy of an epoch without waiting for the device at every step."""

import math
from collections.abc import Callable

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

    Args:
        epoch: counted from 0, for the message.
        steps_before: of the epoch that are not in the sums, for the message.
        every: steps between two checks.
        source: says where a bad loss comes from.
    """

    def __init__(
        self, epoch: int, steps_before: int = 0, *,
        every: int = CHECK_EVERY, source: Callable[[], str] = str,
    ) -> None:  # fmt: skip
        self._epoch, self._every, self._source = epoch, every, source
        self._waiting: list[tuple[Tensor, Tensor, int]] = []
        self._loss_sum, self._correct = 0.0, 0.0
        self.predictions, self._steps = 0, steps_before

    def add(self, loss: Tensor, correct: Tensor, predictions: int) -> None:
        """Take the mean loss of a step and how many of its ``predictions`` were right.

        Raises:
            RunError: one of the losses since the last check is NaN or infinite.
        """
        self._waiting.append((loss.detach(), correct, predictions))
        if len(self._waiting) == self._every:
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
            when = f"epoch {self._epoch + 1}, step {self._steps}"
            check_loss("training", mean, when, self._source)
            self._loss_sum += loss_sum
            self._correct += right
            self.predictions += int(count)
        self._waiting.clear()


def check_loss(part: str, loss: float, when: str, source: Callable[[], str]) -> None:
    """Raise :class:`RunError` if ``loss`` is NaN or infinite; ``source`` says where it is from."""
    if not math.isfinite(loss):
        raise RunError(
            f"the {part} loss became {loss} in {when}{source()}; a lower training.optimizer.lr may "
            f"help",
            repeats=True,
        )
