"""TinyImageNet in its original layout."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pai.data.augment import RandomCropFlip
from pai.data.bundle import DataBundle, DataSpec
from pai.data.decode import decode_squares
from pai.data.download import fetch_zip
from pai.data.folders import images_in
from pai.data.options import check_fraction, usable_path
from pai.data.split import Split, left_by_class
from pai.errors import ConfigError

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_NAME = "tiny-imagenet-200"
_SIDE = 64


@dataclass(frozen=True)
class TinyImageNet:
    """64x64 images of 200 ImageNet classes, 500 to train on and 50 in ``val/`` (Le & Yang 2015).

    ``wnids.txt`` says which classes there are, so that extracts with fewer classes work; labels
    are positions in its sorted lines. The official test images have no labels: ``val/``, labelled
    by ``val_annotations.txt``, is the test part, and the validation part is split off ``train/``.
    Grey images get three equal channels. Files are only read, never moved.

    ``root`` is the folder ``tiny-imagenet-200`` or the one that contains it, where ``download``
    puts it if it is not there. Decoded images are kept in ``cache_dir`` (``None``: not kept).
    """

    root: str
    download: bool = True
    val_fraction: float = 0.1
    split_seed: int = 0
    crop_padding: int = 4
    horizontal_flip: bool = True
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        check_fraction("val_fraction", self.val_fraction)
        RandomCropFlip(self.crop_padding, self.horizontal_flip)  # checks its options

    def check(self) -> DataSpec:
        """Return what a model must fit, from the listing (or as published, before a download).

        Raises:
            ConfigError: the folder is not there and ``download`` is off, or it is not complete.
        """
        folder = self._folder()
        counts = [500] * 200
        if folder.exists() or not self.download:
            wnids = _wnids(folder)
            _test_files(folder, wnids)
            counts = _train_files(folder, wnids)[1].bincount().tolist()
        left = left_by_class(counts, self.val_fraction)
        return DataSpec(
            num_classes=len(left), channels=3, height=_SIDE, width=_SIDE,
            smallest_class=min(left), train_images=sum(left),
        )  # fmt: skip

    def load(self) -> DataBundle[Split]:
        """Return the bundle, downloading it first if that is needed and allowed.

        Raises:
            RunError: the download failed, or an image cannot be decoded; its path is named.
        """
        folder = self._folder()
        if self.download and not folder.exists():
            fetch_zip(_URL, _MD5, folder)
        wnids = _wnids(folder)
        return DataBundle.from_train_and_test(
            self._read(*_train_files(folder, wnids)),
            self._read(*_test_files(folder, wnids)),
            num_classes=len(wnids),
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            augment=RandomCropFlip(self.crop_padding, self.horizontal_flip),
        )

    def _folder(self) -> Path:
        base = usable_path("dataset.root", self.root)
        return base if (base / "wnids.txt").is_file() else base / _NAME

    def _read(self, paths: list[str], labels: Tensor) -> Split:
        return Split(decode_squares(paths, _SIDE, self.cache_dir), labels)


def _wnids(folder: Path) -> list[str]:
    """Return the WordNet ids of the classes, sorted."""
    if not folder.is_dir():
        raise ConfigError(
            f"dataset.root: {folder} is not a folder; give {_NAME}, or the folder that contains "
            f"it, or set dataset.download=true"
        )
    wnids = sorted({line.strip() for line in _lines(folder / "wnids.txt")})
    if len(wnids) < 2:
        raise ConfigError(
            f"dataset.root: {folder / 'wnids.txt'} names {len(wnids)} classes; at least two are "
            f"needed"
        )
    return wnids


def _train_files(folder: Path, wnids: list[str]) -> tuple[list[str], Tensor]:
    paths: list[str] = []
    counts = []
    for wnid in wnids:
        images = folder / "train" / wnid / "images"
        names = _images(images)
        paths += [f"{images}/{name}" for name in names]
        counts.append(len(names))
    return paths, torch.arange(len(wnids)).repeat_interleave(torch.tensor(counts))


def _test_files(folder: Path, wnids: list[str]) -> tuple[list[str], Tensor]:
    images, annotations = folder / "val" / "images", folder / "val" / "val_annotations.txt"
    names = _images(images)
    rows = [line.split("\t") for line in _lines(annotations)]
    wnid_of = {row[0]: row[1] for row in rows if len(row) > 1}
    lines = Counter(row[0] for row in rows if len(row) > 1)
    there = set(names)
    odd = [name for name in sorted(there | set(lines)) if lines[name] != (name in there)]
    if odd:
        raise ConfigError(
            f"dataset.root: {annotations} does not fit {images}: {odd[0]!r} has {lines[odd[0]]} "
            f"lines where {int(odd[0] in there)} is right"
        )
    label = {wnid: number for number, wnid in enumerate(wnids)}
    foreign = sorted(set(wnid_of.values()) ^ set(wnids))
    if foreign:
        raise ConfigError(
            f"dataset.root: {annotations} and wnids.txt have different classes "
            f"({foreign[0]!r} is in only one of them)"
        )
    return [f"{images}/{name}" for name in names], torch.tensor([label[wnid_of[n]] for n in names])


def _images(folder: Path) -> list[str]:
    try:
        names = images_in(folder)
    except OSError as error:
        raise ConfigError(
            f"dataset.root: {folder} is missing; TinyImageNet's original layout is needed"
        ) from error
    if not names:
        raise ConfigError(f"dataset.root: {folder} has no image")
    return names


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"dataset.root: {path} cannot be read; TinyImageNet's original layout is needed"
        ) from error
