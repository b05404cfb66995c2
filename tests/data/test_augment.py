from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from pai.data.augment import Augment, RandomCropFlip, RandomResizedCropFlip


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


def augmented(augment: Augment, images: Tensor, seed: int = 0) -> Tensor:
    draws = augment.draw(len(images), torch.Generator().manual_seed(seed))
    return augment(images, draws)


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
    results = augmented(RandomCropFlip(padding, flip), images, seed)
    assert torch.equal(images, before)
    assert results.dtype == torch.uint8 and results.shape == images.shape
    for image, result in zip(images, results):
        assert as_bytes(result) in allowed_versions(image, padding, flip=flip)


def test_every_shift_and_flip_occurs_equally_often() -> None:
    image = random_images(1, 5, 4)
    versions = allowed_versions(image[0], 1, flip=True)
    assert len(versions) == 18
    count = 18 * 400
    results = augmented(RandomCropFlip(1, True), image.expand(count, -1, -1, -1))
    drawn = Counter(versions[as_bytes(result)] for result in results)
    assert set(drawn) == set(versions.values())
    chi_squared = sum((drawn[version] - 400) ** 2 / 400 for version in versions.values())
    assert chi_squared < 45  # 17 degrees of freedom: 0.02 % of fair draws exceed it


def test_images_of_one_batch_are_drawn_one_by_one() -> None:
    image = random_images(1, 6, 6).expand(64, -1, -1, -1)
    for augment in (RandomCropFlip(2, False), RandomCropFlip(0, True)):
        results = augmented(augment, image)
        assert len({as_bytes(result) for result in results}) > 1


def test_without_flip_no_image_is_mirrored_and_without_padding_none_is_shifted() -> None:
    images = random_images(200, 4, 4)
    flipped = augmented(RandomCropFlip(0, True), images)
    for image, result in zip(images, flipped):
        assert torch.equal(result, image) or torch.equal(result, image.flip(-1))
    for image, result in zip(images, augmented(RandomCropFlip(1, False), images)):
        assert as_bytes(result) in allowed_versions(image, 1, flip=False)


def test_about_half_of_the_images_are_mirrored() -> None:
    images = random_images(2000, 2, 3)
    results = augmented(RandomCropFlip(0, True), images, seed=1)
    mirrored = sum(not torch.equal(a, b) for a, b in zip(images, results))
    assert 1000 - 5 * 23 < mirrored < 1000 + 5 * 23


def test_the_default_changes_nothing() -> None:
    images = random_images(20, 5, 7)
    assert torch.equal(augmented(RandomCropFlip(), images), images)


def test_the_same_generator_state_gives_the_same_result() -> None:
    images = random_images(50, 6, 6)
    augment = RandomCropFlip(2, True)
    first, again, other = (augmented(augment, images, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_shift_beyond_the_image_is_black() -> None:
    images = torch.full((500, 1, 2, 2), 200, dtype=torch.uint8)
    results = augmented(RandomCropFlip(3), images)
    assert set(results.unique().tolist()) == {0, 200}
    assert bool((results.flatten(1) == 0).all(1).any())


def test_a_negative_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="crop_padding"):
        RandomCropFlip(-1)


def test_draws_have_a_row_per_image_that_alone_decides_its_version() -> None:
    images = random_images(30, 9, 9)
    some = torch.tensor([4, 17, 2])
    for augment in (RandomCropFlip(3, True), RandomResizedCropFlip(6)):
        draws = augment.draw(30, torch.Generator().manual_seed(0))
        assert len(draws) == 30
        assert torch.equal(augment(images, draws)[some], augment(images[some], draws[some]))


def test_a_resized_crop_is_torchvisions_under_the_seed_of_the_image() -> None:
    augment = RandomResizedCropFlip(5, min_area=0.3)
    images = random_images(20, 14, 11)
    draws = augment.draw(20, torch.Generator().manual_seed(0))
    reference = v2.Compose([
        v2.RandomResizedCrop(5, scale=(0.3, 1.0)), v2.RandomHorizontalFlip()
    ])  # fmt: skip
    for image, seed, result in zip(images, draws, augment(images, draws), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            assert torch.equal(result, reference(image))


def test_resized_crops_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    augmented(RandomResizedCropFlip(4), random_images(5, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_about_half_of_the_resized_crops_are_mirrored_or_none() -> None:
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[..., 4:] = 255
    many = image.expand(400, -1, -1, -1)
    for flip, low, high in ((True, 150, 250), (False, 0, 0)):
        results = augmented(RandomResizedCropFlip(8, 1.0, horizontal_flip=flip), many).float()
        mirrored = (results[..., 0].mean((1, 2)) > results[..., -1].mean((1, 2))).sum()
        assert low <= int(mirrored) <= high


@pytest.mark.parametrize("area", [0.0, -1.0, 1.1])
def test_an_area_outside_0_and_1_is_refused(area: float) -> None:
    with pytest.raises(ValueError, match="min_area"):
        RandomResizedCropFlip(8, area)
