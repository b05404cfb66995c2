"""Files of every kind become RGB squares."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pai.data import decode as module
from pai.data.decode import decode, decode_squares
from pai.errors import RunError

STREAM = np.random.default_rng(0)
COLOURS = STREAM.integers(0, 256, (7, 5, 3), np.uint8)
GREY = STREAM.integers(0, 256, (7, 5), np.uint8)
ALPHA = STREAM.integers(0, 256, (7, 5), np.uint8)
INDEX = STREAM.integers(0, 4, (7, 5)).astype(np.uint8)
PALETTE = STREAM.integers(0, 256, (4, 3), np.uint8)


def with_palette() -> Image.Image:
    image = Image.frombytes("P", (5, 7), INDEX.tobytes())
    image.putpalette(PALETTE.flatten().tolist())
    return image


def channels(*planes: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(planes).astype(np.uint8))


IMAGES: dict[str, tuple[Image.Image, dict[str, Any], Tensor]] = {
    "rgb": (Image.fromarray(COLOURS), {}, channels(*COLOURS.transpose(2, 0, 1))),
    "grey": (Image.fromarray(GREY), {}, channels(GREY, GREY, GREY)),
    "grey and alpha": (
        Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA))), {},
        channels(GREY, GREY, GREY),
    ),
    "rgb and alpha": (
        Image.fromarray(np.dstack([COLOURS, ALPHA])), {}, channels(*COLOURS.transpose(2, 0, 1))
    ),
    "palette": (with_palette(), {}, channels(*PALETTE[INDEX].transpose(2, 0, 1))),
    "palette with a transparent colour": (
        with_palette(), {"transparency": 2}, channels(*PALETTE[INDEX].transpose(2, 0, 1))
    ),
    "palette with alphas": (
        with_palette(), {"transparency": bytes([255, 0, 9, 200])},
        channels(*PALETTE[INDEX].transpose(2, 0, 1)),
    ),
    "16 bit grey": (
        Image.fromarray(GREY.astype(np.uint16) * 256 + 77), {}, channels(GREY, GREY, GREY)
    ),
    "1 bit": (
        Image.fromarray(GREY > 127), {}, channels(*[np.where(GREY > 127, 255, 0)] * 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMAGES)
def test_a_file_of_any_kind_becomes_rgb(kind: str, tmp_path: Path) -> None:
    image, options, expected = IMAGES[kind]
    path = str(tmp_path / "image.png")
    image.save(path, **options)
    assert torch.equal(decode(path), expected)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    path = str(tmp_path / "image.tif")
    cyan, none = Image.new("L", (6, 4), 255), Image.new("L", (6, 4), 0)
    Image.merge("CMYK", (cyan, none, none, none)).save(path)
    assert decode(path).flatten(1).unique(dim=1).flatten().tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [(np.full((4, 6), 0.5, np.float32), "real"), (np.full((4, 6), 200, np.int32), "32-bit")],
    ids=["real", "32 bits"],
)
def test_numbers_of_unknown_range_are_refused(
    pixels: "np.typing.NDArray[Any]", kind: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "image.tif")
    Image.fromarray(pixels).save(path)
    with pytest.raises(RunError, match=rf"image.tif: its pixels are {kind} numbers"):
        decode(path)


def test_many_files_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 3)
    paths = []
    for number in range(20):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (2 + number, 3), (number, 0, 0)).save(paths[-1])
    images = decode_squares(paths, 4, None)
    assert images.shape == (20, 3, 4, 4)
    assert images[:, 0].flatten(1).unique(dim=1).flatten().tolist() == list(range(20))


@pytest.mark.parametrize("cached", [False, True])
def test_a_file_that_is_gone_is_a_failure_that_names_it(tmp_path: Path, cached: bool) -> None:
    path = str(tmp_path / "gone.png")
    with pytest.raises(RunError, match=r"cannot decode image .*gone\.png"):
        decode_squares([path], 4, str(tmp_path / "cache") if cached else None)
