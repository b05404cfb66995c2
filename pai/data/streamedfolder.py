"""Folders of images that are too large for the memory, ImageNet first of all."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pai.data.augment import RandomResizedCropFlip
from pai.data.bundle import DataBundle, DataSpec
from pai.data.folders import ClassFolders, list_class_folders
from pai.data.options import check_fraction
from pai.data.streaming import Decoder, StreamedSplit, Workers
from pai.processors import cores


@dataclass(frozen=True)
class StreamedImageFolder:
    """RGB images decoded anew whenever they are needed, by worker processes.

    Which folder is which part: :class:`pai.data.folders.ClassFolders`. Training images are cut by
    :class:`pai.data.augment.RandomResizedCropFlip`; for evaluation, BatchNorm warmup and scoring
    the shorter side becomes ``resize_size`` and the central ``image_size`` squared is used.
    Pixels are normalised with the given ``mean`` and ``std`` (of RGB in 0..1).

    ``num_workers`` counts the processes that decode for one training process (0: it decodes
    itself; ``None``: one for each CPU core, divided by the training processes of this machine).
    With ``find_duplicates`` files of equal size are compared when a run starts, and the record says
    how many are in several parts; otherwise it says nothing about that.
    """

    root: str
    image_size: int = 224
    resize_size: int = 256
    min_area: float = 0.08
    horizontal_flip: bool = True
    val_fraction: float = 0.1
    split_seed: int = 0
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    num_workers: int | None = None
    find_duplicates: bool = True

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.resize_size < self.image_size:
            raise ValueError(
                f"resize_size must be at least image_size ({self.image_size}), "
                f"got {self.resize_size}"
            )
        check_fraction("val_fraction", self.val_fraction)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise ValueError(f"{name} must have three values (RGB), got {list(values)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {list(self.std)}")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}")
        self._augment()  # checks its options

    def check(self) -> DataSpec:
        """Return what a model must fit, from the listing.

        Raises:
            ConfigError: a folder is missing or empty, or the parts have different classes.
        """
        folders = list_class_folders(self.root)
        left = folders.left_to_train(self.val_fraction)
        return DataSpec(
            num_classes=folders.num_classes, channels=3,
            height=self.image_size, width=self.image_size,
            smallest_class=min(left), train_images=sum(left),
        )  # fmt: skip

    def load(self) -> DataBundle[StreamedSplit]:
        """Return the bundle; no image is read yet."""
        folders = list_class_folders(self.root)
        train, test, *val = self._parts(folders)
        return DataBundle.from_train_and_test(
            train,
            test,
            val=val[0] if val else None,
            num_classes=folders.num_classes,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            augment=self._augment(),
        )

    def _augment(self) -> RandomResizedCropFlip:
        return RandomResizedCropFlip(self.image_size, self.min_area, self.horizontal_flip)

    def _parts(self, folders: ClassFolders) -> list[StreamedSplit]:
        """Return the train, the test and, if it has a folder, the validation part."""
        listings = [part for part in (folders.train, folders.test, folders.val) if part is not None]
        decoder = Decoder(
            [path for part in listings for path in part.paths()], self.resize_size, self.image_size
        )
        count = self.num_workers
        workers = Workers(decoder, _cores_per_process() if count is None else count)
        mean, std = torch.tensor(list(self.mean)), torch.tensor(list(self.std))
        labels = [part.labels() for part in listings]
        files = torch.arange(sum(map(len, labels))).split([len(part) for part in labels])
        return [
            StreamedSplit(
                workers, own_files, own_labels, mean, std, torch.device("cpu"), self.find_duplicates
            )
            for own_files, own_labels in zip(files, labels, strict=True)
        ]


def _cores_per_process() -> int:
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
