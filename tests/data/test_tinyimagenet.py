import functools
import hashlib
import shutil
import stat
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from pai.data import download, tinyimagenet
from pai.data.augment import RandomCropFlip
from pai.data.tinyimagenet import TinyImageNet
from pai.errors import ConfigError, RunError

WNIDS = ["n03", "n01", "n02"]  # as in the original, wnids.txt is not sorted
TEST = {"val_0.JPEG": "n02", "val_1.JPEG": "n01", "val_10.JPEG": "n03", "val_2.JPEG": "n02"}


def brightness(wnid: str) -> int:
    return 60 * int(wnid[-1])


def paint(path: Path, wnid: str, *, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).integers(-20, 20, (64, 64))
    pixels = (brightness(wnid) + noise).astype(np.uint8)
    image = Image.fromarray(pixels)
    (image if grey else image.convert("RGB")).save(path, "JPEG")


def make_layout(parent: Path, per_class: int = 5) -> Path:
    """Write the original layout with three classes; the first image of each is grey."""
    folder = parent / "tiny-imagenet-200"
    for wnid in WNIDS:
        for number in range(per_class):
            path = folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG"
            paint(path, wnid, grey=number == 0)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("n_0.JPEG\t0\t0\t9\t9\n")
    for name, wnid in TEST.items():
        paint(folder / "val" / "images" / name, wnid)
    lines = [f"{name}\t{wnid}\t0\t0\t9\t9\n" for name, wnid in reversed(TEST.items())]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(WNIDS))
    (folder / "words.txt").write_text("n00000001\tentity\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_layout(tmp_path)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_image_gets_the_label_of_its_class_and_nothing_is_moved(folder: Path) -> None:
    before = snapshot(folder)
    data = TinyImageNet(str(folder.parent), val_fraction=0.2).load()
    for part in (data.train, data.val, data.test):
        assert part.images.shape[1:] == (3, 64, 64) and part.images.dtype == torch.uint8
        levels = part.images.float().mean((1, 2, 3)) / 60 - 1  # 0, 1, 2 in the order of the names
        assert torch.equal(levels.round().long(), part.labels)
    assert torch.equal(data.train.labels.bincount(), torch.tensor([4, 4, 4]))
    assert torch.equal(data.val.labels.bincount(), torch.tensor([1, 1, 1]))
    expected = [sorted(WNIDS).index(TEST[name]) for name in sorted(TEST)]
    assert data.test.labels.tolist() == expected
    assert snapshot(folder) == before


def test_grey_images_get_three_equal_channels(folder: Path) -> None:
    data = TinyImageNet(str(folder), val_fraction=0.2).load()
    images = torch.cat([data.train.images, data.val.images])
    assert bool((images == images[:, :1]).all())  # all of these are grey, in one channel or three


def test_the_folder_itself_or_its_parent_is_the_root(folder: Path) -> None:
    inside, outside = (TinyImageNet(str(root)).load() for root in (folder, folder.parent))
    assert torch.equal(inside.train.images, outside.train.images)
    assert torch.equal(inside.test.labels, outside.test.labels)


def test_the_spec_says_what_loading_finds(folder: Path) -> None:
    (folder / "train" / "n02" / "images" / "n02_4.JPEG").unlink()
    dataset = TinyImageNet(str(folder), val_fraction=0.4)
    spec, data = dataset.check(), dataset.load()
    assert spec.num_classes == data.num_classes == 3
    assert spec.smallest_class == int(data.train.labels.bincount().min()) == 2
    assert (spec.channels, spec.height, spec.width) == data.train.images.shape[1:]


def test_before_a_download_the_published_numbers_are_the_spec(tmp_path: Path) -> None:
    spec = TinyImageNet(str(tmp_path), val_fraction=0.1).check()
    assert (spec.num_classes, spec.smallest_class) == (200, 450)
    assert not list(tmp_path.iterdir())


def test_options_reach_the_bundle_and_the_cache(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    dataset = TinyImageNet(str(folder), crop_padding=2, horizontal_flip=False, cache_dir=str(cache))
    first, second = dataset.load(), dataset.load()
    assert first.augment == RandomCropFlip(2, horizontal_flip=False)
    assert TinyImageNet(str(folder)).load().augment == RandomCropFlip(4, horizontal_flip=True)
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert torch.equal(first.train.images, second.train.images)


def annotate(lines: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "val" / "val_annotations.txt"
        path.write_text("".join(lines(path.read_text().splitlines(keepends=True))))

    return change


MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "is not a folder; give tiny-imagenet-200"),
    "no wnids": (lambda f: (f / "wnids.txt").unlink(), r"wnids\.txt cannot be read"),
    "one class": (lambda f: _write(f / "wnids.txt", "n01\n"), "names 1 classes"),
    "no train": (lambda f: shutil.rmtree(f / "train"), r"train.n01.images is missing"),
    "class missing": (
        lambda f: shutil.rmtree(f / "train" / "n02"), r"train.n02.images is missing"
    ),
    "no annotations": (
        lambda f: (f / "val" / "val_annotations.txt").unlink(), "annotations.txt cannot be read"
    ),
    "no test images": (lambda f: shutil.rmtree(f / "val" / "images"), r"val.images is missing"),
    "image without line": (annotate(lambda x: x[1:]), r"'val_2.JPEG' has 0 lines where 1"),
    "line cut short": (
        annotate(lambda x: [*x[:-1], "val_0.JPEG\n"]), r"'val_0.JPEG' has 0 lines where 1"
    ),
    "line twice": (annotate(lambda x: [*x, x[0]]), r"'val_2.JPEG' has 2 lines where 1"),
    "line without image": (
        lambda f: (f / "val" / "images" / "val_1.JPEG").unlink(), "'val_1.JPEG' has 1 lines where 0"
    ),
    "foreign class": (
        annotate(lambda x: [line.replace("n01", "n77") for line in x]), "'n01' is in only one"
    ),
}  # fmt: skip


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_folder_is_named_before_anything_is_read(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    dataset = TinyImageNet(str(folder.parent), download=False)
    dataset.check()
    change(folder)
    for attempt in (dataset.check, dataset.load):
        with pytest.raises(ConfigError, match=message) as caught:
            attempt()
        assert str(caught.value).startswith("dataset.root: ")
        assert "\n" not in str(caught.value)


def test_an_incomplete_folder_is_named_and_not_downloaded_over(folder: Path) -> None:
    (folder / "wnids.txt").unlink()
    before = snapshot(folder)
    for attempt in (TinyImageNet(str(folder.parent)).check, TinyImageNet(str(folder.parent)).load):
        with pytest.raises(ConfigError, match=r"wnids\.txt cannot be read"):
            attempt()
    assert snapshot(folder) == before


def test_an_unreadable_image_is_a_failure_that_names_the_path(folder: Path) -> None:
    (folder / "train" / "n02" / "images" / "n02_3.JPEG").write_bytes(b"not an image")
    with pytest.raises(RunError, match=r"cannot decode image .*n02_3\.JPEG"):
        TinyImageNet(str(folder)).load()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A zip of the layout on a server of this machine, in the place of the published one."""
    folder = make_layout(tmp_path / "made")
    path = Path(shutil.make_archive(str(tmp_path / "server" / "tiny"), "zip", folder.parent))
    handler = functools.partial(Quiet, directory=str(path.parent))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(tinyimagenet, "_URL", f"http://127.0.0.1:{server.server_port}/tiny.zip")
        publish(path, monkeypatch)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def publish(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinyimagenet, "_MD5", hashlib.md5(path.read_bytes()).hexdigest())


def test_a_missing_folder_is_downloaded_once(archive: Path, tmp_path: Path) -> None:
    dataset = TinyImageNet(str(tmp_path / "new" / "data"))
    expected = TinyImageNet(str(tmp_path / "made")).load()
    for _ in range(2):
        data = dataset.load()
        assert torch.equal(data.train.images, expected.train.images)
        archive.unlink(missing_ok=True)
    assert {path.name for path in (tmp_path / "new" / "data").iterdir()} == {
        "tiny-imagenet-200", ".tiny-imagenet-200.lock"
    }  # fmt: skip


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_a_damaged_archive_is_refused_and_leaves_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"cannot download .*corrupted"):
        TinyImageNet(str(root)).load()
    publish(archive, monkeypatch)  # as if the sum were right
    with pytest.raises(RunError, match=r"cannot download .*zip"):
        TinyImageNet(str(root)).load()
    assert left_in(root) == []


@pytest.mark.parametrize(
    "name", ["../outside.txt", "tiny-imagenet-200/../../outside.txt", "/outside.txt", "outside.txt"]
)
def test_an_archive_that_would_write_elsewhere_is_refused(
    name: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "harm")
    publish(archive, monkeypatch)
    root = tmp_path / "a" / "b" / "data"
    with pytest.raises(RunError, match=r"outside\.txt' does not belong"):
        TinyImageNet(str(root)).load()
    assert left_in(root) == []
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_link_in_an_archive_leads_nowhere(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = zipfile.ZipInfo("tiny-imagenet-200/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(link, str(elsewhere))
        file.writestr("tiny-imagenet-200/link/outside.txt", "harm")
    publish(archive, monkeypatch)
    with pytest.raises(RunError, match="cannot download"):
        TinyImageNet(str(tmp_path / "data")).load()
    assert left_in(tmp_path / "data") == []
    assert not list(elsewhere.iterdir())


def test_without_a_network_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    message = r"cannot download http://cs231n.*Name or.*known; .*unpack the archive in .*data"
    with pytest.raises(RunError, match=message) as caught:
        TinyImageNet(str(tmp_path / "data")).load()
    assert "\n" not in str(caught.value) and "urlopen" not in str(caught.value)
    assert left_in(tmp_path / "data") == []


def test_a_folder_that_appears_meanwhile_is_left_alone(archive: Path, tmp_path: Path) -> None:
    mine = tmp_path / "data" / "tiny-imagenet-200"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    download.fetch_zip(tinyimagenet._URL, "0" * 32, mine)
    assert snapshot(mine) == {str(mine / "notes.txt"): b"mine"}


@pytest.mark.parametrize(
    ("option", "value"), [("val_fraction", 0.0), ("val_fraction", 1.0), ("crop_padding", -1)]
)
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        TinyImageNet("anywhere", **{option: value})  # type: ignore[arg-type]
