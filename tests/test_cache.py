"""The decode cache: right, whole, shared; never stale, torn or fatal."""

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pai import cache
from pai.data import decode
from pai.data.decode import decode_squares

SHAPE = (4, 3, 5, 5)


def content() -> Tensor:
    stream = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, SHAPE, generator=stream, dtype=torch.uint8)


def cached(
    folder: Path | None, key: str, shape: tuple[int, ...], compute: Callable[[], Tensor]
) -> Tensor:
    found, _ = cache.cached(folder, key, {"images": shape}, lambda: {"images": compute()})
    return found["images"]


class Computing:
    """Makes the content and counts how often."""

    times = 0

    def __call__(self) -> Tensor:
        self.times += 1
        return content()


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    folder = tmp_path / "images"
    folder.mkdir()
    stream = np.random.default_rng(0)
    for number in range(5):
        pixels = stream.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(str(path) for path in folder.iterdir())


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_an_entry_is_computed_once_and_comes_back_exactly(tmp_path: Path) -> None:
    compute = Computing()
    for _ in range(3):
        assert torch.equal(cached(tmp_path / "new" / "cache", "key", SHAPE, compute), content())
    assert compute.times == 1
    assert torch.equal(cached(tmp_path / "new" / "cache", "other", SHAPE, compute), content())
    assert compute.times == 2


def test_a_tensor_of_any_layout_comes_back_exactly(tmp_path: Path) -> None:
    turned = content().contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        found = cached(tmp_path, "key", SHAPE, lambda: turned)
        assert (torch.equal(found, turned) and found.is_contiguous()) or found is turned


def test_without_a_folder_nothing_is_stored(tmp_path: Path, images: list[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    compute = Computing()
    for _ in range(2):
        cached(None, "key", SHAPE, compute)
    decode_squares(images, 4, None)
    assert compute.times == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_read_no_longer_depends_on_the_file(tmp_path: Path) -> None:
    cached(tmp_path, "key", SHAPE, content)
    found = cached(tmp_path, "key", SHAPE, content)
    entry = tmp_path / "key.safetensors"
    with entry.open("r+b") as file:
        file.write(bytes(entry.stat().st_size))
    assert torch.equal(found, content())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)


def foreign(path: Path) -> None:
    path.write_bytes(b"something else entirely")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_shape(path: Path) -> None:
    cached(path.parent, "small", (2, 3, 5, 5), lambda: content()[:2])
    (path.parent / "small.safetensors").replace(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [truncate, flip_a_bit, foreign, empty, other_shape]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_computed_anew_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    compute = Computing()
    cached(tmp_path, "key", SHAPE, compute)
    damage(tmp_path / "key.safetensors")
    with caplog.at_level(logging.WARNING, "pai"):
        assert torch.equal(cached(tmp_path, "key", SHAPE, compute), content())
    assert compute.times == 2
    (record,) = caplog.records
    assert "key.safetensors" in record.getMessage()
    caplog.clear()
    assert torch.equal(cached(tmp_path, "key", SHAPE, compute), content())  # it was replaced
    assert compute.times == 2 and not caplog.records


def test_a_damaged_entry_that_cannot_be_replaced_is_not_used(tmp_path: Path) -> None:
    compute = Computing()
    cached(tmp_path, "key", SHAPE, compute)
    a_folder(tmp_path / "key.safetensors")
    for times in (2, 3):
        assert torch.equal(cached(tmp_path, "key", SHAPE, compute), content())
        assert compute.times == times


def test_a_folder_that_cannot_be_made_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    compute = Computing()
    with caplog.at_level(logging.WARNING, "pai"):
        for _ in range(2):
            assert torch.equal(cached(tmp_path / "file", "key", SHAPE, compute), content())
    assert compute.times == 2
    assert all("nothing stored" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can write everywhere")
def test_a_folder_that_can_only_be_read_still_gives_its_entries(tmp_path: Path) -> None:
    compute = Computing()
    cached(tmp_path, "key", SHAPE, compute)
    tmp_path.chmod(0o555)
    try:
        cached(tmp_path, "key", SHAPE, compute)
        assert compute.times == 1
        cached(tmp_path, "other", SHAPE, compute)
        assert compute.times == 2
    finally:
        tmp_path.chmod(0o755)


def test_a_write_that_breaks_off_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    assert torch.equal(cached(tmp_path, "key", SHAPE, content), content())
    assert "no space left" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


def test_a_failed_computation_stores_nothing_and_frees_the_lock(tmp_path: Path) -> None:
    def fail() -> Tensor:
        raise RuntimeError("cannot")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot"):
            cached(tmp_path, "key", SHAPE, fail)
    assert not entries(tmp_path)
    assert torch.equal(cached(tmp_path, "key", SHAPE, content), content())


def _one_of_many(folder: Path, barrier: Barrier, locked: bool) -> None:
    if not locked:
        cache._PATIENCE_S = 0.0  # who finds the entry locked computes and stores too

    def compute() -> Tensor:
        (folder / f"computed-{os.getpid()}").touch()
        deadline = time.monotonic() + 60
        while not locked and len(list(folder.glob("computed-*"))) < 2:
            assert time.monotonic() < deadline, "no other process computes"
            time.sleep(0.01)
        return big()

    barrier.wait(60)
    assert torch.equal(cached(folder, "key", tuple(big().shape), compute), big())


def big() -> Tensor:
    return torch.arange(2_000_000).to(torch.uint8).view(20, 10, 100, 100)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("locked", [True, False])
def test_processes_that_start_at_once_share_an_entry(tmp_path: Path, locked: bool) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path, context.Barrier(6), locked)
    processes = [context.Process(target=_one_of_many, args=arguments) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    computed = len(list(tmp_path.glob("computed-*")))
    assert computed == 1 if locked else 2 <= computed <= 6
    assert [path.name for path in entries(tmp_path)] == ["key.safetensors"]
    assert not list(tmp_path.glob(".*"))
    found = cached(tmp_path, "key", tuple(big().shape), lambda: pytest.fail("not stored"))
    assert torch.equal(found, big())


def decoded_anew(images: list[str], folder: Path, size: int = 6) -> bool:
    """Decode through the cache; check the result; return whether it was new."""
    before = len(entries(folder))
    assert torch.equal(
        decode_squares(images, size, str(folder)), decode_squares(images, size, None)
    )
    return len(entries(folder)) > before


def test_images_are_decoded_once(tmp_path: Path, images: list[str]) -> None:
    folder = tmp_path / "cache"
    assert decoded_anew(images, folder)
    assert not decoded_anew(images, folder)
    moved = shutil.copytree(Path(images[0]).parent, tmp_path / "copy")
    assert not decoded_anew(sorted(str(path) for path in moved.iterdir()), folder)


def test_whatever_changes_the_pixels_is_a_new_entry(
    tmp_path: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    assert decoded_anew(images, folder)
    assert decoded_anew(images, folder, size=4)
    assert decoded_anew(images[:4], folder)
    assert decoded_anew(images[::-1], folder)
    monkeypatch.setattr(decode, "_VERSION", decode._VERSION + 1)
    assert decoded_anew(images, folder)
    assert not decoded_anew(images, folder)


def test_a_file_of_the_same_name_size_and_date_with_other_pixels_is_noticed(
    tmp_path: Path, images: list[str]
) -> None:
    path = Path(images[2]).with_suffix(".bmp")  # not compressed: the same length
    Image.new("RGB", (6, 6), (1, 2, 3)).save(path)
    files, folder = [*images[:2], str(path)], tmp_path / "cache"
    assert decoded_anew(files, folder)
    before = path.stat()
    Image.new("RGB", (6, 6), (1, 2, 4)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert decoded_anew(files, folder)


def test_the_users_home_folder_can_be_named(
    tmp_path: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    decode_squares(images, 6, "~/cache")
    assert len(entries(tmp_path / "cache")) == 1
