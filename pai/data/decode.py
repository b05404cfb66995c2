"""Image files to uint8 RGB tensors.

Legend: N files, S the side of the square they become, H x W pixels.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor
from tqdm import tqdm

from pai.cache import cached
from pai.errors import RunError
from pai.processors import cores

_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose mode "I" holds 16-bit numbers
_VERSION = 2  # of the pixels that decode_square makes of a file: to be raised when they change
_CHUNK = 256
_UNREADABLE = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError,
)  # fmt: skip


def decode_squares(paths: Sequence[str], size: int, cache_dir: str | None) -> Tensor:
    """Return the images at ``paths``, squares of ``size``: ``[N, 3, S, S]`` (uint8).

    With ``cache_dir`` they are decoded once. The key is a SHA-256 over the bytes of every file, in
    order, over ``size`` and over the versions of this code and of Pillow. Names and dates are not
    in it: an archive gives all its files one date, and a file replaced by another of the same size
    would go unnoticed. Reading and hashing costs a small part of decoding.

    Raises:
        RunError: a file cannot be read or decoded; its path is named.
    """
    shape = (len(paths), 3, size, size)
    if cache_dir is None:
        return _decode_all(paths, shape)
    found, _ = cached(
        Path(cache_dir).expanduser(), _content_key(paths, size), {"images": shape},
        lambda: {"images": _decode_all(paths, shape)},
    )  # fmt: skip
    return found["images"]


def decode(path: str) -> Tensor:
    """Return the image at ``path`` as it is: ``[3, H, W]`` (uint8, pixels interleaved in memory).

    Raises:
        RunError: it cannot be read or decoded.
    """
    return _pixels(_open(path))


def header_size(path: str) -> tuple[int, int]:
    """Return width and height from the header alone.

    Raises:
        RunError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _content_key(paths: Sequence[str], size: int) -> str:
    versions = f"{_VERSION}/{PIL.__version__}/{features.version('jpg')}"
    key = hashlib.sha256(f"{versions}/{size}/{len(paths)}".encode())
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (half the time of Path's)
                key.update(hashlib.sha256(file.readall()).digest())
        except OSError as error:
            raise _unreadable(path, error) from error
    return key.hexdigest()


def _decode_all(paths: Sequence[str], shape: tuple[int, int, int, int]) -> Tensor:
    images = torch.empty(shape, dtype=torch.uint8)

    def decode_some(some: range) -> int:
        for position in some:
            images[position] = _pixels(_square(_open(paths[position]), shape[-1]))
        return len(some)

    with (
        tqdm(total=len(paths), desc="decoding", unit="image", disable=None, leave=False) as bar,
        ThreadPoolExecutor(cores()) as pool,
    ):
        for count in pool.map(decode_some, _chunks(len(paths))):
            bar.update(count)
    return images


def _chunks(count: int) -> Iterator[range]:
    return (range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK))


def _open(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return _rgb(image)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: BaseException) -> RunError:
    return RunError(f"cannot decode image {path}: {error}")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN_BITS):
        kind = "real" if image.mode == "F" else "32-bit"
        raise ValueError(f"its pixels are {kind} numbers, whose range is not known; use 8 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
        image = Image.fromarray((np.asarray(image) / 256).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _square(picture: Image.Image, size: int) -> Image.Image:
    width, height = picture.size
    if (width, height) == (size, size):
        return picture
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def _pixels(picture: Image.Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)
