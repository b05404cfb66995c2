import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import image_folder, tiny_run

from pai.data import same_files
from pai.data.augment import RandomCropFlip
from pai.data.bundle import Split
from pai.data.imagefolder import ImageFolder
from pai.data.same_files import file_fingerprints
from pai.data.streamedfolder import StreamedImageFolder
from pai.errors import ConfigError, RunError

COLOURS = {"ants": (250, 10, 10), "bees": (10, 250, 10), "cats": (10, 10, 250)}


def paint(path: Path, colour: tuple[int, int, int], width: int = 6, height: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


def make_folder(
    root: Path, counts: dict[str, dict[str, int]], suffix: str = ".png", side: int = 6
) -> Path:
    """Write ``counts[split][class]`` images in the class's colour, blue marking the number."""
    for split, classes in counts.items():
        for name, count in classes.items():
            red, green, _ = COLOURS[name]
            for number in range(count):
                path = root / split / name / f"{number:03}{suffix}"
                paint(path, (red, green, number), side, side)
    return root


def small_folder(root: Path) -> Path:
    counts = {"ants": 4, "bees": 3}
    return make_folder(root, {"train": counts, "test": {"ants": 1, "bees": 2}})


def class_names(part: Split) -> list[str]:
    colours = part.images[:, :2, 0, 0].tolist()
    return [
        next(name for name, (red, green, _) in COLOURS.items() if [red, green] == colour)
        for colour in colours
    ]


def test_every_image_gets_the_label_of_its_folder(tmp_path: Path) -> None:
    counts = {"cats": 4, "ants": 3, "bees": 5}
    make_folder(tmp_path, {"train": counts, "test": {"bees": 1, "cats": 2, "ants": 3}})
    folder = ImageFolder(str(tmp_path), val_fraction=0.3)
    data = folder.load()
    classes = sorted(counts)
    for part in (data.train, data.val, data.test):
        assert [classes[label] for label in part.labels] == class_names(part)
    assert len(data.train) + len(data.val) == 12 and len(data.test) == 6
    assert torch.equal(data.val.labels.bincount(), torch.tensor([1, 2, 1]))  # 0.9, 1.5, 1.2
    spec = folder.check()
    assert spec.num_classes == data.num_classes == 3
    assert (spec.channels, spec.height, spec.width) == (3, 6, 6) == data.train.images.shape[1:]


def test_val_alone_is_the_test_part(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": {"ants": 5, "bees": 5}, "val": {"ants": 2, "bees": 1}})
    data = ImageFolder(str(tmp_path), val_fraction=0.2).load()
    assert torch.equal(data.test.labels.bincount(), torch.tensor([2, 1]))
    assert torch.equal(data.val.labels.bincount(), torch.tensor([1, 1]))
    assert torch.equal(data.train.labels.bincount(), torch.tensor([4, 4]))


def test_val_beside_test_is_the_validation_part(tmp_path: Path) -> None:
    counts = {"train": {"ants": 5, "bees": 5}, "val": {"ants": 2, "bees": 3}}
    make_folder(tmp_path, counts | {"test": {"ants": 1, "bees": 4}})
    folder = ImageFolder(str(tmp_path), val_fraction=0.2)
    data = folder.load()
    assert torch.equal(data.train.labels.bincount(), torch.tensor([5, 5]))
    assert torch.equal(data.val.labels.bincount(), torch.tensor([2, 3]))
    assert torch.equal(data.test.labels.bincount(), torch.tensor([1, 4]))
    assert folder.check().smallest_class == 5


@settings(max_examples=10, deadline=None)
@given(ants=st.integers(2, 7), bees=st.integers(2, 7), fraction=st.floats(0.05, 0.6))
def test_the_smallest_class_is_the_one_loading_finds(
    tmp_path_factory: pytest.TempPathFactory, ants: int, bees: int, fraction: float
) -> None:
    root = tmp_path_factory.mktemp("folder")
    train = {"ants": ants, "bees": bees}
    make_folder(root, {"train": train, "test": {"ants": 1, "bees": 1}}, side=2)
    folder = ImageFolder(str(root), val_fraction=fraction)
    spec, data = folder.check(), folder.load()
    assert spec.smallest_class == int(data.train.labels.bincount().min())


def test_pixels_of_a_png_of_the_right_size_are_untouched(tmp_path: Path) -> None:
    small_folder(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "test" / "ants" / "000.png")
    data = ImageFolder(str(tmp_path)).load()
    assert torch.equal(data.test.images[0], torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_grey_image_gets_three_equal_channels(tmp_path: Path) -> None:
    small_folder(tmp_path)
    pixels = np.arange(36, dtype=np.uint8).reshape(6, 6)
    Image.fromarray(pixels).save(tmp_path / "test" / "ants" / "000.png")
    image = ImageFolder(str(tmp_path)).load().test.images[0]
    for channel in image:
        assert torch.equal(channel, torch.from_numpy(pixels))


def test_a_16_bit_grey_image_keeps_its_brightness(tmp_path: Path) -> None:
    small_folder(tmp_path)
    pixels = np.linspace(0, 65535, 36).astype(np.uint16).reshape(6, 6)
    Image.fromarray(pixels).save(tmp_path / "test" / "ants" / "000.png")
    image = ImageFolder(str(tmp_path)).load().test.images[0]
    brightness = torch.from_numpy(pixels / 65535.0)
    torch.testing.assert_close(image[0].double() / 255, brightness, rtol=0, atol=1 / 255)


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.integers(1, 9))
def test_any_image_becomes_a_square_of_the_wanted_size(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, size: int
) -> None:
    root = small_folder(tmp_path_factory.mktemp("folder"))
    paint(root / "test" / "ants" / "000.png", (7, 77, 177), width, height)
    data = ImageFolder(str(root), image_size=size).load()
    expected = torch.tensor([7, 77, 177], dtype=torch.uint8).view(3, 1, 1).expand(3, size, size)
    assert torch.equal(data.test.images[0], expected)


@pytest.mark.parametrize("upright", [False, True])
def test_the_central_square_is_kept(tmp_path: Path, upright: bool) -> None:
    small_folder(tmp_path)
    pixels = np.zeros((6, 18, 3), dtype=np.uint8)
    pixels[:, 6:12] = np.random.default_rng(0).integers(1, 256, (6, 6, 3), dtype=np.uint8)
    if upright:
        pixels = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    Image.fromarray(pixels).save(tmp_path / "test" / "ants" / "000.png")
    image = ImageFolder(str(tmp_path)).load().test.images[0]
    middle = pixels[6:12] if upright else pixels[:, 6:12]
    assert torch.equal(image, torch.from_numpy(middle).permute(2, 0, 1))


def test_the_default_size_is_the_shorter_side_of_the_first_training_image(tmp_path: Path) -> None:
    small_folder(tmp_path)
    paint(tmp_path / "train" / "ants" / "000.png", COLOURS["ants"], 11, 9)
    assert ImageFolder(str(tmp_path)).check().height == 9
    assert ImageFolder(str(tmp_path)).load().train.images.shape[2:] == (9, 9)


def test_jpegs_are_read(tmp_path: Path) -> None:
    make_folder(
        tmp_path,
        {"train": {"ants": 2, "bees": 2}, "test": {"ants": 1, "bees": 1}},
        suffix=".JPG",
        side=16,
    )
    data = ImageFolder(str(tmp_path), val_fraction=0.5).load()
    for image, label in zip(data.test.images, data.test.labels):
        red, green, _ = COLOURS[("ants", "bees")[int(label)]]
        flat = torch.tensor([red, green, 0]).view(3, 1, 1)
        assert int((image.int() - flat).abs().max()) <= 4  # lossy


def test_hidden_files_and_other_files_are_ignored(tmp_path: Path) -> None:
    expected = ImageFolder(str(small_folder(tmp_path))).load()
    for split in ("train", "test"):
        (tmp_path / split / ".cache").mkdir()
        (tmp_path / split / "README.txt").write_text("not a class")
        for name in (".000.png", "._000.png", ".DS_Store", "notes.txt", "labels.csv"):
            (tmp_path / split / "ants" / name).write_bytes(b"not an image")
    data = ImageFolder(str(tmp_path)).load()
    assert torch.equal(data.train.images, expected.train.images)
    assert torch.equal(data.test.labels, expected.test.labels)
    assert ImageFolder(str(tmp_path)).check().smallest_class == 2


def test_augmentation_follows_the_options_and_validation_is_exact(tmp_path: Path) -> None:
    folder = ImageFolder(str(small_folder(tmp_path)), crop_padding=2, horizontal_flip=False)
    augment = folder.load().augment
    assert augment == RandomCropFlip(2, False)


@pytest.mark.parametrize("options", [{"image_size": 0}, {"val_fraction": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageFolder("anywhere", **options)  # type: ignore[arg-type]


def test_images_in_several_parts_are_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder(tmp_path / "images")
    overrides = ("dataset=imagefolder", f"dataset.root={root}", "dataset.image_size=8",
                 "training.epochs=0")  # fmt: skip
    record = tiny_run(tmp_path / "clean", *overrides)
    assert record["data"]["duplicates"] == {"train_val": 0, "train_test": 0, "val_test": 0}
    shutil.copy(root / "train/dark/0.png", root / "test/dark/7.png")
    shutil.copy(root / "test/light/0.png", root / "test/light/7.png")  # within a part: no matter
    record = tiny_run(tmp_path / "leaking", *overrides, "dataset.val_fraction=0.5")
    found = record["data"]["duplicates"]
    assert found["train_val"] == 0
    assert found["train_test"] + found["val_test"] == 1
    assert "1 images of the test part are in the " in caplog.text


def test_a_part_of_the_training_images_is_the_same_random_part_each_time(tmp_path: Path) -> None:
    counts = {"ants": 9, "bees": 7}
    make_folder(tmp_path, {"train": counts, "test": counts})

    def numbers(seed: int) -> list[list[int]]:
        data = ImageFolder(str(tmp_path), train_per_class=4, split_seed=seed).load()
        assert data.train.labels.bincount().tolist() == data.val.labels.new_full((2,), 3).tolist()
        assert data.val.labels.tolist() == [0, 1]
        assert len(data.test) == 16, "the test part stays whole"
        both = torch.cat([data.train.images, data.val.images])[:, :2, 0, 0].tolist()
        assert sorted(map(tuple, both)) == sorted([(250, 10)] * 4 + [(10, 250)] * 4)
        return sorted(torch.cat([data.train.images, data.val.images])[:, :, 0, 0].tolist())

    assert numbers(0) == numbers(0)
    assert len({str(numbers(seed)) for seed in range(4)}) > 1
    assert ImageFolder(str(tmp_path), train_per_class=4).check().smallest_class == 3


def test_a_part_larger_than_the_smallest_class_is_refused(tmp_path: Path) -> None:
    folder = ImageFolder(str(small_folder(tmp_path)), train_per_class=4)
    with pytest.raises(ConfigError, match=r"dataset.train_per_class: 4 asked for, .* has 3 images"):
        folder.check()
    with pytest.raises(ValueError, match="train_per_class must be at least 2, got 1"):
        ImageFolder(str(tmp_path), train_per_class=1)


def test_streamed_files_in_several_parts_are_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder(tmp_path / "images")
    overrides = ("dataset=imagefolder_streamed", f"dataset.root={root}", "dataset.image_size=8",
                 "dataset.resize_size=8", "dataset.num_workers=0", "training.epochs=0")  # fmt: skip
    shutil.copytree(root / "test", root / "val")
    shutil.copy(root / "train/dark/0.png", root / "test/light/7.png")  # under another label
    shutil.copy(root / "test/light/0.png", root / "test/light/8.png")  # within a part: no matter
    record = tiny_run(tmp_path / "leaking", *overrides)
    assert record["data"]["duplicates"] == {"train_val": 0, "train_test": 1, "val_test": 7}
    assert "1 images of the test part are in the train part too" in caplog.text
    assert "7 images of the test part are in the val part too" in caplog.text
    record = tiny_run(tmp_path / "silent", *overrides, "dataset.find_duplicates=false")
    assert "duplicates" not in record["data"]


def test_fingerprints_of_files_agree_exactly_where_contents_do(tmp_path: Path) -> None:
    half = b"x" * 5000
    contents = [
        b"", b"", b"a", b"b", b"a", half + half, b"y" + half + half[1:], half + half, half + b"z",
        half + b"y", bytes(70000), bytes(69999) + b"1", bytes(70000), b"1" + bytes(69999),
    ]  # fmt: skip
    paths = []
    for number, content in enumerate(contents):
        paths.append(str(tmp_path / str(number)))
        Path(paths[-1]).write_bytes(content)
    prints = file_fingerprints(paths)
    for one, first in enumerate(contents):
        for other, second in enumerate(contents):
            assert (prints[one] == prints[other]) == (first == second), (one, other)
    with pytest.raises(RunError, match=r"cannot read image .*nowhere"):
        file_fingerprints([str(tmp_path / "nowhere")])


def test_only_files_that_may_be_equal_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(tmp_path / name) for name in ("long", "one", "two", "again")]
    for path, content in zip(paths, (b"1234", b"one", b"two", b"one"), strict=True):
        Path(path).write_bytes(content)
    read: list[tuple[str, str]] = []

    def watched(step: str, real: Callable[[str], bytes]) -> Callable[[str], bytes]:
        def look(path: str) -> bytes:
            read.append((step, Path(path).name))
            return real(path)

        return look

    for step in ("_tail", "_whole"):
        monkeypatch.setattr(same_files, step, watched(step, getattr(same_files, step)))
    file_fingerprints(paths)
    assert read == [
        *(("_tail", name) for name in ("one", "two", "again")),
        *(("_whole", name) for name in ("one", "again")),
    ]


@pytest.mark.parametrize("streamed", [False, True])
def test_training_images_are_counted_before_they_are_read(streamed: bool, tmp_path: Path) -> None:
    """A dry run tells the costs of unbalanced folders too."""
    counts = {"cats": 9, "ants": 3, "bees": 5}
    root = str(make_folder(tmp_path, {"train": counts, "test": counts}))
    kind = StreamedImageFolder if streamed else ImageFolder
    folder = kind(root, val_fraction=0.3)
    data = folder.load()
    assert folder.check().training_samples == len(data.train) == 11
    assert folder.check().smallest_class == int(data.train.labels.bincount().min())
