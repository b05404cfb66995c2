import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import check

from pai.data.imagefolder import ImageFolder
from pai.errors import ConfigError, RunError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three noisy images in train/ and test/."""
    for split in ("train", "test"):
        for name in ("ants", "bees"):
            for number in range(3):
                path = tmp_path / "images" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.effect_noise((20, 20), 60).convert("RGB").save(path)
    return tmp_path / "images"


def remove(*parts: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root.joinpath(*parts))


def add_class(split: str) -> Callable[[Path], None]:
    return lambda root: (root / split / "cats").mkdir()


def empty_class(split: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for path in (root / split / "bees").iterdir():
            path.rename(path.with_suffix(".txt"))

    return change


MISTAKES = {
    "missing root": (remove(), "is not a folder"),
    "missing train": (remove("train"), "no folder train/"),
    "missing test and val": (remove("test"), r"no folder test/ or val/"),
    "one class": (remove("train", "bees"), r"1 class folders.*at least two"),
    "class missing in test": (remove("test", "bees"), "'bees' is in only one"),
    "class only in test": (add_class("test"), "'cats' is in only one"),
    "empty class in train": (empty_class("train"), r"train.bees has no image"),
    "empty class in test": (empty_class("test"), r"test.bees has no image"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_folder_is_named_before_anything_is_read(
    root: Path, change: Callable[[Path], None], message: str
) -> None:
    ImageFolder(str(root)).check()
    change(root)
    for attempt in (ImageFolder(str(root)).check, ImageFolder(str(root)).load):
        with pytest.raises(ConfigError, match=message) as caught:
            attempt()
        assert str(caught.value).startswith("dataset.root: ")
        assert str(root) in str(caught.value)


def test_a_file_instead_of_a_folder_is_named(root: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        ImageFolder(str(root / "train" / "ants" / "0.png")).check()


def test_the_validation_folder_is_checked_too(root: Path) -> None:
    shutil.copytree(root / "test", root / "val")
    ImageFolder(str(root)).check()
    shutil.rmtree(root / "val" / "ants")
    with pytest.raises(ConfigError, match=r"val.* have different class folders"):
        ImageFolder(str(root)).check()


def test_text_with_an_image_name_is_a_failure_that_names_the_path(root: Path) -> None:
    broken = root / "train" / "bees" / "1.png"
    broken.write_text("this is not an image")
    with pytest.raises(RunError, match=r"cannot decode image .*train.bees.1\.png"):
        ImageFolder(str(root)).load()


def test_an_empty_first_image_is_named_by_the_check(root: Path) -> None:
    (root / "train" / "ants" / "0.png").write_bytes(b"")
    for attempt in (ImageFolder(str(root)).check, ImageFolder(str(root), image_size=8).load):
        with pytest.raises(RunError, match=r"cannot decode image .*train.ants.0\.png"):
            attempt()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow also warns of a damaged TIFF
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
@pytest.mark.parametrize("share", [0.005, 0.03, 0.3, 0.6, 0.9])
def test_a_truncated_image_is_a_failure_that_names_the_path(
    root: Path, suffix: str, share: float
) -> None:
    path = root / "test" / "ants" / f"9.{suffix}"
    Image.effect_noise((20, 20), 60).convert("RGB").save(path)
    ImageFolder(str(root)).load()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunError, match=rf"cannot decode image .*test.ants.9\.{suffix}"):
        ImageFolder(str(root)).load()


@pytest.mark.parametrize("number", [0, 1])
def test_an_image_too_large_to_decode_safely_is_a_failure_that_names_the_path(
    root: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (50, 50)).save(root / "train" / "ants" / f"{number}.png")
    with pytest.raises(RunError, match=rf"cannot decode image .*train.ants.{number}\.png"):
        ImageFolder(str(root)).load()


def test_only_files_are_images(root: Path) -> None:
    os.mkfifo(root / "train" / "ants" / "pipe.png")  # reading it would wait for ever
    (root / "train" / "ants" / "folder.png").mkdir()
    data = ImageFolder(str(root)).load()
    assert len(data.train) + len(data.val) == 6


def test_a_folder_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refused(path: Path) -> Any:  # as for a user without permission; tests may run as root
        if Path(path).name == "bees":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ConfigError, match=r"dataset.root: .*train/bees cannot be read: Permission"):
        ImageFolder(str(root)).check()


def test_images_larger_than_memory_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"dataset: two images of .*image_size.* memory"):
        check("dataset.image_size=4000000", "dataset=digits")
