"""What a run has to know of a task: how its data sets are looked at, loaded, batched and measured.

In every task a model gives logits with the class axis second, ``[N, C]`` or ``[N, C, L]`` for
samples that hold L predictions each (the positions of a sequence), and targets are ``[N]`` or
``[N, L]``. So the mean of ``torch.nn.functional.cross_entropy`` over samples and positions is the
loss of all tasks, and the loss of a sample is the mean over its own positions.

Legend: N samples, C classes, L positions.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from pai.metrics import ACCURACY, LOSS, PERPLEXITY, Kind


@dataclass(frozen=True)
class Task:
    """How a task speaks of its data, what it measures and which epoch it calls the best.

    Attributes:
        data: what the data set holds (``"images"``), for messages.
        sample: one of them (``"image"``).
        predictions: what is predicted and counted (``"images"``, ``"tokens"``, ``"nodes"``).
        best_by: the validation metric that selects the best epoch.
        example_model: a choice of ``model`` that is made for it, for messages.
        perplexity: whether ``exp(loss)`` is a metric.
        mixable: whether two inputs have a weighted mean (mixup); numbers of tokens and nodes have
            none.
        causal: whether a prediction may depend on the positions up to its own only, because the
            targets are the inputs that come next.
        whole: whether each pass computes all samples, whichever are asked for (nodes of a graph).
    """

    data: str
    sample: str
    predictions: str
    best_by: Literal["val_accuracy", "val_loss"]
    example_model: str
    perplexity: bool = False
    mixable: bool = False
    causal: bool = False
    whole: bool = False

    def measures(self, part: str, loss: float, accuracy: float) -> dict[str, float]:
        """Return ``<part>_loss`` (nats), ``<part>_accuracy`` and maybe ``<part>_perplexity``."""
        found: dict[Kind, float] = {LOSS: loss, ACCURACY: accuracy}
        if self.perplexity:
            found[PERPLEXITY] = perplexity(loss)
        return {kind.name(part): value for kind, value in found.items()}

    def is_better(self, row: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
        """Return whether an epoch beats the best so far; equally good ones do not."""
        if best is None:
            return True
        if self.best_by == "val_loss":
            return row["val_loss"] < best["val_loss"]
        return row["val_accuracy"] > best["val_accuracy"]


IMAGES = Task("images", "image", "images", "val_accuracy", "resnet20", mixable=True)
TEXT = Task("text", "sequence", "tokens", "val_loss", "gpt", perplexity=True, causal=True)
NODES = Task("a graph", "node", "nodes", "val_accuracy", "gcn", whole=True)


def perplexity(loss: float) -> float:
    """Return ``exp(loss)``, infinite where that is above the largest float."""
    return math.exp(loss) if loss < 709 else math.inf


class Spec(Protocol):
    """What can be known about a data set before the run: enough to build and try a model."""

    @property
    def task(self) -> Task:
        """The task."""

    @property
    def smallest_class(self) -> int:
        """The largest ``scoring.samples_per_class``."""

    @property
    def training_samples(self) -> int:
        """About how many samples the train part has."""

    @property
    def scoring_classes(self) -> int:
        """How many times ``scoring.samples_per_class`` samples are scored on."""

    def room(self) -> str:
        """Say where ``smallest_class`` comes from, for a message."""

    def arguments(self, parameters: Collection[str]) -> dict[str, Any]:
        """Return what a model builder with these parameters is given by name.

        Raises:
            ValueError: the builder is not for this data; the text continues its name.
        """

    def inputs(self) -> Tensor:
        """Return two empty samples."""

    def outputs(self) -> tuple[int, ...]:
        """Return the shape of the logits of two samples."""

    def says(self) -> str:
        """Describe the samples in a few words, with the option that changes them."""

    def describe(self) -> dict[str, Any]:
        """Return the same in plain values: a part of the key of remembered scores."""


class SampleBatches(Protocol):
    """Re-iterable batches of ``(inputs, targets)`` on the device of the bundle."""

    @property
    def order(self) -> Tensor:
        """Which samples, in order."""

    def __len__(self) -> int:
        """Return the number of batches."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, the same every time."""


class Sized(Protocol):
    """A part of a data set."""

    def __len__(self) -> int:
        """Return the number of samples."""


class Bundle(Protocol):
    """Train, validation and test part of a data set, which share nothing, and their batches.

    With ``rank`` and ``world_size`` each of several processes gets its share of every batch;
    ``batch_size`` counts the samples of all of them.
    """

    @property
    def task(self) -> Task:
        """The task."""

    @property
    def train(self) -> Sized:
        """The part to train and score on."""

    @property
    def val(self) -> Sized:
        """The part that selects the best epoch."""

    @property
    def test(self) -> Sized:
        """The part that is evaluated at the end."""

    def to(self, device: torch.device) -> Self:
        """Return the bundle with its batches on ``device``."""

    def describe(self) -> dict[str, Any]:
        """Return what the record should say about the data besides the sizes of the parts."""

    def batches(
        self, part: Any, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> SampleBatches:
        """Return all of ``part`` in its stored order."""

    def warmup_batches(self, batch_size: int, seed: int) -> SampleBatches:
        """Return the train part in one seeded random order."""

    def training_batches(
        self, batch_size: int, seed: int, epoch: int, *, rank: int = 0, world_size: int = 1
    ) -> SampleBatches:
        """Return the train part for one epoch."""

    def scoring_batches(self, samples_per_class: int, batch_size: int, seed: int) -> SampleBatches:
        """Return the training samples that are scored.

        Raises:
            ConfigError: there are not so many.
        """


@runtime_checkable
class Dataset(Protocol):
    """The options of a data set: looked at before the run, loaded in it."""

    def check(self) -> Spec:
        """Return what a model must fit; cheap. Raises ConfigError if the data is not there."""

    def load(self) -> Bundle:
        """Return the bundle."""
