"""Any folder of images: ``train/<class>/*`` and ``test/<class>/*`` or ``val/<class>/*``."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pai.data.augment import RandomCropFlip
from pai.data.bundle import DataBundle, DataSpec
from pai.data.options import check_fraction
from pai.data.split import Split, held_out
from pai.errors import ConfigError, RunError

_UNREADABLE = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError,
)  # fmt: skip
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class ImageFolder:
    """RGB images decoded once into memory.

    The test part is ``test/`` if it exists. If ``val/`` exists beside it, that is the validation
    part; if ``val/`` stands alone it is the test part (ImageNet's convention), and the validation
    part is split off ``train/``. Images are resized so that the shorter side is ``image_size`` (by
    default the shorter side of the first training image) and cropped to the central square.
    """

    root: str
    image_size: int | None = None
    val_fraction: float = 0.1
    split_seed: int = 0
    crop_padding: int = 4
    horizontal_flip: bool = True

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        check_fraction("val_fraction", self.val_fraction)
        RandomCropFlip(self.crop_padding, self.horizontal_flip)  # checks its options

    def check(self) -> DataSpec:
        """Return what a model must fit, from the listing and one image header.

        Raises:
            ConfigError: a folder is missing or empty, or the splits have different classes.
            RunError: the first training image cannot be read.
        """
        classes = self._classes()
        size = self.image_size or min(_header_size(_files(self._folder("train") / classes[0])[0]))
        smallest = min(len(_files(self._folder("train") / name)) for name in classes)
        if not self._own_validation():
            smallest -= held_out(smallest, self.val_fraction)
        return DataSpec(
            num_classes=len(classes), channels=3, height=size, width=size, smallest_class=smallest
        )

    def load(self) -> DataBundle[Split]:
        """Return the bundle.

        Raises:
            RunError: an image cannot be decoded; its path is named.
        """
        classes = self._classes()
        size = self.check().height
        return DataBundle.from_train_and_test(
            self._read("train", classes, size),
            self._read(self._test_name(), classes, size),
            val=self._read("val", classes, size) if self._own_validation() else None,
            num_classes=len(classes),
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            augment=RandomCropFlip(self.crop_padding, self.horizontal_flip),
        )

    def _folder(self, split: str) -> Path:
        return Path(self.root).expanduser() / split

    def _exists(self, split: str) -> bool:
        return self._folder(split).is_dir()

    def _own_validation(self) -> bool:
        return self._exists("val") and self._exists("test")

    def _test_name(self) -> str:
        return "test" if self._exists("test") else "val"

    def _classes(self) -> list[str]:
        if not Path(self.root).expanduser().is_dir():
            raise ConfigError(f"dataset.root: {self.root} is not a folder; give one with train/")
        for split in ("train", self._test_name()):
            if not self._exists(split):
                raise ConfigError(
                    f"dataset.root: {self.root} has no folder {split}/; "
                    f"train/<class>/* and test/<class>/* (or val/<class>/*) are needed"
                )
        classes = _subfolders(self._folder("train"))
        if len(classes) < 2:
            raise ConfigError(
                f"dataset.root: {self._folder('train')} has {len(classes)} class folders; "
                f"at least two are needed"
            )
        for split in ("train", "val", "test"):
            if self._exists(split):
                self._check_split(split, classes)
        return classes

    def _check_split(self, split: str, classes: list[str]) -> None:
        found = _subfolders(self._folder(split))
        if found != classes:
            odd = sorted(set(found) ^ set(classes))[0]
            raise ConfigError(
                f"dataset.root: {self._folder(split)} and {self._folder('train')} have different "
                f"class folders ({odd!r} is in only one of them)"
            )
        for name in classes:
            if next(_images(self._folder(split) / name), None) is None:
                raise ConfigError(
                    f"dataset.root: class folder {self._folder(split) / name} has no image "
                    f"({', '.join(sorted(_SUFFIXES))})"
                )

    def _read(self, split: str, classes: list[str], size: int) -> Split:
        paths, labels = [], []
        for label, name in enumerate(classes):
            found = _files(self._folder(split) / name)
            paths += found
            labels += [label] * len(found)
        images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

        def decode(position: int) -> None:
            images[position] = _decode(paths[position], size)

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(decode, range(len(paths)), chunksize=64):
                pass
        return Split(images, torch.tensor(labels))


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )


def _files(folder: Path) -> list[Path]:
    return sorted(_images(folder))


def _header_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except _UNREADABLE as error:
        raise RunError(f"cannot decode image {path}: {error}") from error


def _decode(path: Path, size: int) -> Tensor:
    try:
        with Image.open(path) as image:
            picture = _rgb(image)
    except _UNREADABLE as error:
        raise RunError(f"cannot decode image {path}: {error}") from error
    width, height = picture.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        image = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
