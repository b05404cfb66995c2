"""Folders of images by part and class: ``train/<class>/*`` and ``test/`` or ``val/`` like it."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pai.data.options import usable_path
from pai.data.split import left_by_class
from pai.errors import ConfigError
from pai.seeding import generator

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Listing:
    """The image files of one part as they were when they were listed."""

    folder: Path
    names: dict[str, list[str]]  # the files of each class, sorted; labels are positions of classes

    @property
    def smallest(self) -> int:
        """The number of images of the smallest class."""
        return min(len(members) for members in self.names.values())

    def paths(self) -> list[str]:
        """Return the path of every file, class by class."""
        return [
            os.path.join(self.folder, name, member)  # noqa: PTH118  (there may be millions)
            for name, members in self.names.items()
            for member in members
        ]

    def labels(self) -> Tensor:
        """Return the class of every file: ``[N]`` (int64)."""
        counts = torch.tensor([len(members) for members in self.names.values()])
        return torch.arange(len(self.names)).repeat_interleave(counts)

    def some(self, per_class: int, seed: int) -> "Listing":
        """Return ``per_class`` random files of each class, the same for the same ``seed``.

        Raises:
            ConfigError: a class has fewer.
        """
        if per_class > self.smallest:
            raise ConfigError(
                f"dataset.train_per_class: {per_class} asked for, but the smallest class of "
                f"{self.folder} has {self.smallest} images"
            )
        stream = generator(seed, "train_per_class")
        chosen = {}
        for name, members in self.names.items():
            order = torch.randperm(len(members), generator=stream)[:per_class].tolist()
            chosen[name] = [members[position] for position in sorted(order)]
        return Listing(self.folder, chosen)


@dataclass(frozen=True)
class ClassFolders:
    """What there is below a root folder.

    The test part is ``test/`` if it exists. If ``val/`` exists beside it, that is the validation
    part; if ``val/`` stands alone it is the test part (ImageNet's convention), and the validation
    part has to be split off ``train/``.
    """

    train: Listing
    val: Listing | None
    test: Listing

    @property
    def num_classes(self) -> int:
        """The number of class folders, the same in all parts."""
        return len(self.train.names)

    def left_to_train(self, val_fraction: float) -> list[int]:
        """Return the training images of each class, without those held out for validation."""
        counts = [len(members) for members in self.train.names.values()]
        return left_by_class(counts, val_fraction) if self.val is None else counts


def list_class_folders(root: str) -> ClassFolders:
    """List all image files below ``root``.

    Raises:
        ConfigError: a folder is missing, empty or cannot be read, or the parts have different
            classes.
    """
    try:
        return _list(root)
    except OSError as error:
        raise ConfigError(
            f"dataset.root: {error.filename} cannot be read: {error.strerror}"
        ) from error


def _list(root: str) -> ClassFolders:
    base = usable_path("dataset.root", root)
    if not base.is_dir():
        raise ConfigError(f"dataset.root: {root} is not a folder; give one with train/")
    own_test = (base / "test").is_dir()
    own_val = own_test and (base / "val").is_dir()
    test = base / ("test" if own_test else "val")
    for folder, missing in ((base / "train", "train/"), (test, "test/ or val/")):
        if not folder.is_dir():
            raise ConfigError(
                f"dataset.root: {root} has no folder {missing}; "
                f"train/<class>/* and test/<class>/* (or val/<class>/*) are needed"
            )
    train = _list_part(base / "train")
    if len(train.names) < 2:
        raise ConfigError(
            f"dataset.root: {train.folder} has {len(train.names)} class folders; "
            f"at least two are needed"
        )
    found = ClassFolders(train, _list_part(base / "val") if own_val else None, _list_part(test))
    for part in (found.train, found.val, found.test):
        if part is not None:
            _check(part, train)
    return found


def images_in(folder: Path) -> list[str]:
    """Return the names of the image files in ``folder``, sorted; hidden files are left out."""
    with os.scandir(folder) as entries:  # there may be millions
        return sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES)
            and not entry.name.startswith(".")
            and entry.is_file()
        )


def _list_part(folder: Path) -> Listing:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return Listing(folder, {name: images_in(folder / name) for name in names})


def _check(part: Listing, train: Listing) -> None:
    if list(part.names) != list(train.names):
        odd = sorted({*part.names} ^ {*train.names})[0]
        raise ConfigError(
            f"dataset.root: {part.folder} and {train.folder} have different "
            f"class folders ({odd!r} is in only one of them)"
        )
    for name, members in part.names.items():
        if not members:
            raise ConfigError(
                f"dataset.root: class folder {part.folder / name} has no image "
                f"({', '.join(SUFFIXES)})"
            )
