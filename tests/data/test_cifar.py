import multiprocessing
import os
import pickle
import time
import urllib.request
from email.message import Message
from http.client import IncompleteRead
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from pai.data.augment import RandomCropFlip
from pai.data.cifar import Cifar
from pai.errors import ConfigError, RunError


class StandIn:
    """What torchvision's CIFAR classes offer: ``data`` [N, 32, 32, 3] and a list ``targets``."""

    made: list["StandIn"]

    def __init__(self, root: Path, *, train: bool, download: bool) -> None:
        self.root, self.train, self.download = root, train, download
        count = 40 if train else 20
        draw = np.random.default_rng(int(train))
        self.data = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.targets = [number % 10 for number in range(count)]
        type(self).made.append(self)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    StandIn.made = []
    monkeypatch.setattr(datasets, "CIFAR10", StandIn)
    return StandIn


@pytest.mark.parametrize("num_classes", [10, 100])
def test_the_spec_of_the_published_data_sets(num_classes: int, tmp_path: Path) -> None:
    spec = Cifar(str(tmp_path), num_classes, val_fraction=0.1).check()
    assert (spec.channels, spec.height, spec.width) == (3, 32, 32)
    assert spec.num_classes == num_classes
    assert spec.smallest_class * num_classes == 45_000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("num_classes", "folder"), [(10, "cifar-10-batches-py"), (100, "cifar-100-python")]
)
def test_missing_files_without_download_are_the_users_mistake(
    num_classes: int, folder: str, tmp_path: Path
) -> None:
    cifar = Cifar(str(tmp_path), num_classes, download=False)
    with pytest.raises(ConfigError, match=rf"dataset.root: .*{folder}.*dataset.download=true"):
        cifar.check()
    (tmp_path / folder).mkdir()
    assert cifar.check().num_classes == num_classes


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize(
    ("error", "phrase"),
    [
        (URLError(OSError(-2, "Name or service not known")), "Name or service not known"),
        (HTTPError("http://x", 404, "Not Found", Message(), None), "HTTP Error 404"),
        (IncompleteRead(b"half"), "IncompleteRead"),
        (TimeoutError("timed out"), "timed out"),
    ],
)
def test_without_a_network_one_line_says_what_to_do(
    num_classes: int, error: Exception, phrase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    message = rf"CIFAR-{num_classes} from .*{phrase}.*unpack cifar-{num_classes}-python.tar.gz"
    with pytest.raises(RunError, match=message) as caught:
        Cifar(str(tmp_path), num_classes).load()
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value) and "urlopen" not in str(caught.value)


def test_damaged_files_are_refused_before_they_are_unpickled(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(RunError, match=r"CIFAR-10 .*dataset.download=true"):
        Cifar(str(tmp_path), download=False).load()
    assert not (tmp_path / "executed").exists()


def test_images_are_laid_out_channels_first_with_their_labels(
    stand_in: type[StandIn], tmp_path: Path
) -> None:
    data = Cifar(str(tmp_path), val_fraction=0.25).load()
    train, test = stand_in.made
    assert (train.train, test.train) == (True, False)
    assert train.root == tmp_path and train.download
    assert data.test.images.dtype == torch.uint8 and data.test.labels.dtype == torch.int64
    assert np.array_equal(data.test.images.numpy(), np.moveaxis(test.data, 3, 1))
    assert data.test.labels.tolist() == test.targets
    images = torch.cat([data.train.images, data.val.images]).numpy()
    labels = torch.cat([data.train.labels, data.val.labels]).tolist()
    originals = {image.tobytes(): label for image, label in zip(train.data, train.targets)}
    for image, label in zip(images, labels):
        assert originals.pop(np.moveaxis(image, 0, 2).tobytes()) == label
    assert not originals
    assert data.val.labels.bincount().tolist() == [1] * 10
    assert data.num_classes == 10


class Exclusive(StandIn):
    """Tells of others that are at work in the same folder."""

    def __init__(self, root: Path, **options: Any) -> None:
        busy = root / f"busy-{os.getpid()}"
        busy.touch()
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            if len(list(root.glob("busy-*"))) > 1:
                (root / "two-at-once").touch()
            time.sleep(0.005)
        busy.unlink()
        super().__init__(root, **options)


def load_after(barrier: Barrier, root: Path) -> None:
    barrier.wait(60)
    assert Cifar(str(root)).load().num_classes == 10


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_several_processes_one_at_a_time_may_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StandIn.made = []
    monkeypatch.setattr(datasets, "CIFAR10", Exclusive)
    context = multiprocessing.get_context("fork")
    arguments = (context.Barrier(2), tmp_path / "new")  # neither has the folder
    processes = [context.Process(target=load_after, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        ".cifar-10-batches-py.lock"
    ]


def test_a_folder_that_can_only_be_read_is_read(
    stand_in: type[StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o555)
    real = os.access  # by which the superuser could write
    monkeypatch.setattr(
        os, "access",
        lambda path, mode: real(path, mode) and not (mode == os.W_OK and Path(path) == tmp_path),
    )  # fmt: skip
    try:
        assert Cifar(str(tmp_path)).load().num_classes == 10
        assert list(tmp_path.iterdir()) == []
    finally:
        tmp_path.chmod(0o755)
    assert len(stand_in.made) == 2


def test_without_a_download_nothing_is_locked(stand_in: type[StandIn], tmp_path: Path) -> None:
    Cifar(str(tmp_path), download=False).load()
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_bundle(stand_in: type[StandIn], tmp_path: Path) -> None:
    data = Cifar(str(tmp_path), download=False, crop_padding=3, horizontal_flip=False).load()
    assert data.augment == RandomCropFlip(3, False)
    assert not any(made.download for made in stand_in.made)
    assert Cifar(str(tmp_path)).load().augment == RandomCropFlip(4, True)


@pytest.mark.parametrize(
    ("option", "value"), [("num_classes", 20), ("val_fraction", 0.0), ("val_fraction", 1.0)]
)
def test_options_out_of_range_are_refused(option: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=option):
        Cifar(str(tmp_path), **{option: value})  # type: ignore[arg-type]
