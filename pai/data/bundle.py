"""What every data set becomes: train, validation and test part kept apart, and their batches.

Legend: N images, C channels, H x W pixels, B batch size, K classes.
"""

import hashlib
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from pai.data.augment import Augment
from pai.data.batches import Batch, Batches, Part
from pai.data.split import Split, chosen_members, members_by_class, stratified_split
from pai.data.task import IMAGES, Dataset, Task
from pai.errors import ConfigError
from pai.seeding import generator

__all__ = ["Batch", "Batches", "DataBundle", "DataSpec", "Dataset", "Part", "Split"]

P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class DataSpec:
    """What can be known about a data set of images before it is loaded: enough to build a model."""

    num_classes: int
    channels: int
    height: int
    width: int
    smallest_class: int  # training images of the smallest class, after the validation split
    train_images: int | None = None  # of all classes; None: all are as large as the smallest
    task: ClassVar[Task] = IMAGES

    @property
    def training_samples(self) -> int:
        """Training images, after the validation split."""
        if self.train_images is not None:
            return self.train_images
        return self.smallest_class * self.num_classes

    @property
    def scoring_classes(self) -> int:
        """How many times ``samples_per_class`` images are scored on."""
        return self.num_classes

    def room(self) -> str:
        """Say how many images the smallest class has."""
        return f"the smallest class has {self.smallest_class} training images"

    def arguments(self, parameters: Collection[str]) -> dict[str, Any]:
        """Return classes and channels, and the image size for a builder that asks for it.

        ``image_size``, the side of square images in pixels, goes to a builder that has a parameter
        of that name; a network that takes any size has none.

        Raises:
            ValueError: it is asked for and the images are not square.
        """
        supplied = {"num_classes": self.num_classes, "in_channels": self.channels}
        if "image_size" in parameters:
            if self.height != self.width:
                raise ValueError(
                    f"is for square images, those of the data set have {self.height}x{self.width} "
                    f"pixels"
                )
            supplied["image_size"] = self.height
        return supplied

    def inputs(self) -> Tensor:
        """Return two empty images."""
        return torch.zeros(2, self.channels, self.height, self.width)

    def outputs(self) -> tuple[int, ...]:
        """Return the shape of the logits of two images."""
        return 2, self.num_classes

    def says(self) -> str:
        """Return the shape of an image, and the option that changes it."""
        return f"images of {self.channels}x{self.height}x{self.width} (dataset.image_size)"

    def describe(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True)
class DataBundle(Generic[P]):
    """Train, validation and test parts that share no image, and how to normalise them.

    All batches come as ``([B, C, H, W], [B])``. With ``rank`` and ``world_size``, ``batch_size``
    counts the images of all processes together; see :class:`pai.data.batches.Batches`.
    """

    train: P
    val: P
    test: P
    num_classes: int
    mean: Tensor  # [C], of the train part, pixels in 0..1
    std: Tensor  # [C]
    augment: Augment | None
    task: ClassVar[Task] = IMAGES

    @classmethod
    def from_train_and_test(
        cls, train: P, test: P, *, num_classes: int, val_fraction: float,
        split_seed: int, augment: Augment | None, val: P | None = None,
    ) -> Self:  # fmt: skip
        """Set a stratified validation part aside (unless ``val`` is given) and measure the rest.

        Raises:
            ConfigError: the train or the validation part would be empty.
        """
        if val is None:
            val_index, train_index = stratified_split(train.labels, val_fraction, split_seed)
            train, val = train.subset(train_index), train.subset(val_index)
        for name, part in (("train", train), ("validation", val), ("test", test)):
            if len(part) == 0:
                raise ConfigError(
                    f"dataset.val_fraction: {val_fraction} leaves the {name} part empty; "
                    f"use a value between 0 and 1 that leaves at least one image in each part"
                )
        mean, std = train.statistics()
        return cls(train, val, test, num_classes, mean, std, augment)

    def to(self, device: torch.device) -> Self:
        """Return the bundle with its batches on ``device``."""
        train, val, test = (part.to(device) for part in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    def describe(self) -> dict[str, Any]:
        """Return how many images of a later part are in an earlier one too.

        ``duplicates.train_test`` counts the test images that are also training images. Images in
        memory are compared pixel by pixel, streamed ones by their files. ``sha256`` tells other
        images, labels or parts from these. Both are left out if images are not to be compared
        (:class:`pai.data.streamedfolder.StreamedImageFolder`).
        """
        prints = {n: getattr(self, n).fingerprints() for n in ("train", "val", "test")}
        if any(found is None for found in prints.values()):
            return {}
        sets = {name: set(found) for name, found in prints.items()}
        digest = hashlib.sha256()
        for name, found in prints.items():
            digest.update(f"{name} {len(found)} {getattr(self, name).labels.tolist()}".encode())
            digest.update(b"".join(found))
        return {
            "sha256": digest.hexdigest(),
            "duplicates": {
                f"{first}_{second}": sum(image in sets[first] for image in prints[second])
                for first, second in (("train", "val"), ("train", "test"), ("val", "test"))
            },
        }

    def batches(self, part: P, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Batches:
        """Return ``part`` in its stored order, not augmented."""
        return Batches(
            part, self.mean, self.std, batch_size, torch.arange(len(part)),
            rank=rank, world_size=world_size,
        )  # fmt: skip

    def warmup_batches(self, batch_size: int, seed: int) -> Batches:
        """Return the train part in one seeded random order, not augmented."""
        order = torch.randperm(len(self.train), generator=generator(seed, "warmup_order"))
        return Batches(self.train, self.mean, self.std, batch_size, order, for_batchnorm=True)

    def training_batches(
        self, batch_size: int, seed: int, epoch: int, *, rank: int = 0, world_size: int = 1
    ) -> Batches:
        """Return the train part for one epoch: its own order and its own augmentation."""
        count, draws = len(self.train), None
        order = torch.randperm(count, generator=generator(seed, f"order/{epoch}"))
        if self.augment is not None:
            draws = self.augment.draw(count, generator(seed, f"augmentation/{epoch}"))
        return Batches(
            self.train, self.mean, self.std, batch_size, order, self.augment, draws,
            for_batchnorm=True, rank=rank, world_size=world_size,
        )  # fmt: skip

    def scoring_batches(self, samples_per_class: int, batch_size: int, seed: int) -> Batches:
        """Return ``samples_per_class`` train images of each class, shuffled, never augmented.

        Raises:
            ConfigError: a class of the train part has fewer images than asked for.
        """
        stream = generator(seed, "scoring_subset")
        classes = members_by_class(self.train.labels, self.num_classes)
        index = chosen_members(classes, samples_per_class, stream, "images")
        order = torch.randperm(len(index), generator=stream)
        return Batches(self.train, self.mean, self.std, batch_size, index[order])
