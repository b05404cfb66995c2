"""scikit-learn's handwritten digits: 1,797 real 8x8 images that need no download."""

import csv
import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from pai.data.augment import RandomCropFlip
from pai.data.bundle import DataBundle, DataSpec
from pai.data.options import check_fraction
from pai.data.split import Split, left_by_class, stratified_split
from pai.errors import ConfigError

_SIDE = 8
_IMAGES = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)  # of each digit


@dataclass(frozen=True)
class Digits:
    """The test set of the UCI optical digits as shipped with scikit-learn (``load_digits``).

    There is no official test part, so a stratified ``test_fraction`` is held out with
    ``split_seed``: the same images for every run seed. Grey values 0..16 become 0..255; each
    pixel is repeated to reach ``image_size``, a multiple of 8.
    """

    image_size: int = _SIDE
    test_fraction: float = 0.2
    val_fraction: float = 0.1
    split_seed: int = 0
    crop_padding: int = 0
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        if self.image_size < _SIDE or self.image_size % _SIDE:
            raise ValueError(f"image_size must be a multiple of {_SIDE}, got {self.image_size}")
        check_fraction("test_fraction", self.test_fraction)
        check_fraction("val_fraction", self.val_fraction)
        RandomCropFlip(self.crop_padding, self.horizontal_flip)  # checks its options

    def check(self) -> DataSpec:
        """Return what a model must fit; cheap."""
        left = left_by_class(left_by_class(_IMAGES, self.test_fraction), self.val_fraction)
        return DataSpec(
            num_classes=10, channels=1, height=self.image_size, width=self.image_size,
            smallest_class=min(left), train_images=sum(left),
        )  # fmt: skip

    def load(self) -> DataBundle[Split]:
        """Return the bundle."""
        everything = _read(repeat=self.image_size // _SIDE)
        test_index, train_index = stratified_split(
            everything.labels, self.test_fraction, self.split_seed
        )
        if len(train_index) == 0:
            raise ConfigError(
                f"dataset.test_fraction: {self.test_fraction} leaves nothing to train on"
            )
        return DataBundle.from_train_and_test(
            everything.subset(train_index),
            everything.subset(test_index),
            num_classes=10,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            augment=RandomCropFlip(self.crop_padding, self.horizontal_flip),
        )


def _read(repeat: int) -> Split:
    # Read from scikit-learn's files without importing it: its import takes longer than all else
    # here. tests/data/test_digits.py compares the result with sklearn.datasets.load_digits().
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None, "scikit-learn is a dependency"
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = [[int(float(cell)) for cell in row] for row in csv.reader(file)]
    table = torch.tensor(rows)
    grey = (table[:, :-1].double() * 255 / 16).round().to(torch.uint8)
    images = grey.view(-1, 1, _SIDE, _SIDE)
    images = images.repeat_interleave(repeat, dim=2).repeat_interleave(repeat, dim=3)
    return Split(images, table[:, -1])
