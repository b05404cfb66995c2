"""CIFAR-10 and CIFAR-100 through torchvision."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pai.data.augment import RandomCropFlip
from pai.data.bundle import DataBundle, DataSpec
from pai.data.download import DOWNLOAD_ERRORS, lock_of, reason
from pai.data.options import check_fraction, usable_path
from pai.data.split import Split, left_by_class
from pai.errors import ConfigError, RunError

_ARCHIVES = {10: "cifar-10-python.tar.gz", 100: "cifar-100-python.tar.gz"}


@dataclass(frozen=True)
class Cifar:
    """50,000 train and 10,000 test images of 32x32 pixels (Krizhevsky 2009).

    torchvision verifies the MD5 sum of every file before it unpickles it, so no other pickle
    is ever opened.
    """

    root: str
    num_classes: int = 10
    download: bool = True
    val_fraction: float = 0.1
    split_seed: int = 0
    crop_padding: int = 4
    horizontal_flip: bool = True

    def __post_init__(self) -> None:
        if self.num_classes not in (10, 100):
            raise ValueError(f"num_classes must be 10 or 100, got {self.num_classes}")
        check_fraction("val_fraction", self.val_fraction)
        RandomCropFlip(self.crop_padding, self.horizontal_flip)  # checks its options

    def _folder(self) -> Path:
        name = "cifar-10-batches-py" if self.num_classes == 10 else "cifar-100-python"
        return usable_path("dataset.root", self.root) / name

    def check(self) -> DataSpec:
        """Return what a model must fit.

        Raises:
            ConfigError: the files are not there and ``download`` is off.
        """
        folder = self._folder()
        if not self.download and not folder.is_dir():
            raise ConfigError(
                f"dataset.root: {folder} does not exist; "
                f"give the folder that contains it, or set dataset.download=true"
            )
        left = left_by_class([50_000 // self.num_classes] * self.num_classes, self.val_fraction)
        return DataSpec(
            num_classes=self.num_classes, channels=3, height=32, width=32,
            smallest_class=min(left), train_images=sum(left),
        )  # fmt: skip

    def load(self) -> DataBundle[Split]:
        """Return the bundle, downloading it first if that is needed and allowed.

        Raises:
            RunError: the download failed or the files are damaged.
        """
        return DataBundle.from_train_and_test(
            self._read(train=True),
            self._read(train=False),
            num_classes=self.num_classes,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            augment=RandomCropFlip(self.crop_padding, self.horizontal_flip),
        )

    def _read(self, *, train: bool) -> Split:
        from torchvision import datasets

        family: Any = datasets.CIFAR10 if self.num_classes == 10 else datasets.CIFAR100
        folder = self._folder()
        try:
            with self._downloading_alone(folder):
                data = family(folder.parent, train=train, download=self.download)
        except DOWNLOAD_ERRORS as error:
            if self.download:
                hint = f"without a network, unpack {_ARCHIVES[self.num_classes]} there by hand"
            else:
                hint = "dataset.download=true would fetch it again"
            raise RunError(
                f"cannot load CIFAR-{self.num_classes} from {self.root}: {reason(error)}; {hint}"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return Split(images, torch.tensor(data.targets))

    def _downloading_alone(self, folder: Path) -> AbstractContextManager[Any]:
        """Keep other processes out while torchvision may write the files: it does so in place."""
        if not self.download:
            return nullcontext()
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):  # then nothing is written either
            return nullcontext()
        return lock_of(folder)
