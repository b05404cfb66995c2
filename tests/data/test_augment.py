from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pai.data.augment import RandomCropFlip


def random_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 2, height, width), generator=stream, dtype=torch.uint8)


def allowed_versions(image: Tensor, padding: int, *, flip: bool) -> dict[bytes, tuple[int, ...]]:
    """Every result by its bytes, built pixel by pixel: black canvas, shifted copy, mirrored."""
    _, height, width = image.shape
    versions: dict[bytes, tuple[int, ...]] = {}
    for down in range(-padding, padding + 1):
        for right in range(-padding, padding + 1):
            canvas = torch.zeros_like(image)
            for row in range(height):
                for column in range(width):
                    source_row, source_column = row - down, column - right
                    if 0 <= source_row < height and 0 <= source_column < width:
                        canvas[:, row, column] = image[:, source_row, source_column]
            versions[as_bytes(canvas)] = (down, right, 0)
            if flip:
                versions[as_bytes(canvas.flip(-1))] = (down, right, 1)
    return versions


def as_bytes(image: Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(3, 6), width=st.integers(3, 6), padding=st.integers(0, 2),
    flip=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_each_output_is_an_allowed_version_of_its_own_input(
    height: int, width: int, padding: int, flip: bool, seed: int
) -> None:
    images = random_images(6, height, width, seed)
    before = images.clone()
    augment = RandomCropFlip(padding, flip)
    results = augment(images, torch.Generator().manual_seed(seed))
    assert torch.equal(images, before)
    assert results.dtype == torch.uint8 and results.shape == images.shape
    for image, result in zip(images, results):
        assert as_bytes(result) in allowed_versions(image, padding, flip=flip)


def test_every_shift_and_flip_occurs_equally_often() -> None:
    image = random_images(1, 5, 4)
    versions = allowed_versions(image[0], 1, flip=True)
    assert len(versions) == 18
    count = 18 * 400
    results = RandomCropFlip(1, True)(
        image.expand(count, -1, -1, -1), torch.Generator().manual_seed(0)
    )
    drawn = Counter(versions[as_bytes(result)] for result in results)
    assert set(drawn) == set(versions.values())
    chi_squared = sum((drawn[version] - 400) ** 2 / 400 for version in versions.values())
    assert chi_squared < 45  # 17 degrees of freedom: 0.02 % of fair draws exceed it


def test_images_of_one_batch_are_drawn_one_by_one() -> None:
    image = random_images(1, 6, 6).expand(64, -1, -1, -1)
    for augment in (RandomCropFlip(2, False), RandomCropFlip(0, True)):
        results = augment(image, torch.Generator().manual_seed(0))
        assert len({as_bytes(result) for result in results}) > 1


def test_without_flip_no_image_is_mirrored_and_without_padding_none_is_shifted() -> None:
    images = random_images(200, 4, 4)
    stream = torch.Generator().manual_seed(0)
    flipped = RandomCropFlip(0, True)(images, stream)
    for image, result in zip(images, flipped):
        assert torch.equal(result, image) or torch.equal(result, image.flip(-1))
    for image, result in zip(images, RandomCropFlip(1, False)(images, stream)):
        assert as_bytes(result) in allowed_versions(image, 1, flip=False)


def test_about_half_of_the_images_are_mirrored() -> None:
    images = random_images(2000, 2, 3)
    results = RandomCropFlip(0, True)(images, torch.Generator().manual_seed(1))
    mirrored = sum(not torch.equal(a, b) for a, b in zip(images, results))
    assert 1000 - 5 * 23 < mirrored < 1000 + 5 * 23


def test_the_default_changes_nothing() -> None:
    images = random_images(20, 5, 7)
    assert torch.equal(RandomCropFlip()(images, torch.Generator().manual_seed(0)), images)


def test_the_same_generator_state_gives_the_same_result() -> None:
    images = random_images(50, 6, 6)
    augment = RandomCropFlip(2, True)
    first, again, other = (
        augment(images, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_shift_beyond_the_image_is_black() -> None:
    images = torch.full((500, 1, 2, 2), 200, dtype=torch.uint8)
    results = RandomCropFlip(3)(images, torch.Generator().manual_seed(0))
    assert set(results.unique().tolist()) == {0, 200}
    assert bool((results.flatten(1) == 0).all(1).any())


def test_a_negative_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="crop_padding"):
        RandomCropFlip(-1)
