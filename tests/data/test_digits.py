from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from pai.data.augment import RandomCropFlip
from pai.data.bundle import DataBundle, Split
from pai.data.digits import Digits
from pai.errors import ConfigError


def identities(*parts: Split) -> Counter[tuple[bytes, int]]:
    return Counter(
        (image.contiguous().numpy().tobytes(), int(label))
        for part in parts
        for image, label in zip(part.images, part.labels)
    )


def test_the_three_parts_are_scikit_learns_digits_exactly() -> None:
    truth = load_digits()
    grey_values = {}
    data = Digits().load()
    for part in (data.train, data.val, data.test):
        for grey in part.images.unique().tolist():
            grey_values[grey] = round(grey * 16 / 255)
    assert sorted(grey_values.values()) == list(range(17))  # one to one with the 17 grey values
    assert grey_values[0] == 0 and grey_values[255] == 16
    assert all(abs(grey / 255 - level / 16) <= 0.5 / 255 for grey, level in grey_values.items())
    table = {level: grey for grey, level in grey_values.items()}
    expected = Counter(
        (bytes(table[int(value)] for value in row), int(label))
        for row, label in zip(truth.data, truth.target)
    )
    assert identities(data.train, data.val, data.test) == expected
    assert data.num_classes == 10
    assert data.train.images.shape[1:] == (1, 8, 8) and data.train.images.dtype == torch.uint8


def test_each_part_has_its_share_of_every_digit() -> None:
    counts = np.bincount(load_digits().target)
    data = Digits(test_fraction=0.2, val_fraction=0.1).load()
    test, val, train = (np.bincount(part.labels) for part in (data.test, data.val, data.train))
    assert (abs(test - 0.2 * counts) <= 0.5).all()
    assert (abs(val - 0.1 * (counts - test)) <= 0.5).all()
    assert (train + val + test == counts).all()


@settings(max_examples=8, deadline=None)
@given(test_fraction=st.floats(0.01, 0.9), val_fraction=st.floats(0.01, 0.9))
def test_the_spec_says_what_loading_finds(test_fraction: float, val_fraction: float) -> None:
    digits = Digits(test_fraction=test_fraction, val_fraction=val_fraction)
    spec, data = digits.check(), digits.load()
    assert spec.smallest_class == int(data.train.labels.bincount(minlength=10).min())
    assert (spec.channels, spec.height, spec.width) == tuple(data.train.images.shape[1:])
    assert spec.num_classes == data.num_classes == len(data.test.labels.unique())


def test_the_split_seed_fixes_the_test_images() -> None:
    first, again, other = (Digits(split_seed=seed).load() for seed in (0, 0, 1))
    assert torch.equal(first.test.images, again.test.images)
    assert torch.equal(first.val.images, again.val.images)
    assert identities(first.test) != identities(other.test)
    assert len(first.test) == len(other.test)


def test_pixels_are_repeated_to_the_image_size() -> None:
    small, large = Digits().load(), Digits(image_size=24).load()
    assert Digits(image_size=24).check().height == 24
    enlarged = np.kron(small.val.images.numpy(), np.ones((1, 1, 3, 3), dtype=np.uint8))
    assert np.array_equal(large.val.images.numpy(), enlarged)
    assert torch.equal(small.val.labels, large.val.labels)


def test_augmentation_follows_the_options() -> None:
    augment = Digits(crop_padding=2, horizontal_flip=True).load().augment
    assert augment == RandomCropFlip(2, True)


def test_training_images_are_augmented_and_test_images_are_not() -> None:
    data: DataBundle[Split] = Digits(crop_padding=2).load()
    (inputs, _), *_ = data.training_batches(1500, seed=0, epoch=0)
    grey = ((inputs * data.std + data.mean) * 255).round().to(torch.uint8)
    assert len(identities(Split(grey, torch.zeros(len(grey))))) > 1200
    stored = {pixels for pixels, _ in identities(data.train)}
    unchanged = sum(image.numpy().tobytes() in stored for image in grey)
    assert unchanged < len(grey) / 10  # 1 in 25 shifts is none at all
    (inputs, _), *_ = data.batches(data.test, 1500)
    grey = ((inputs * data.std + data.mean) * 255).round().to(torch.uint8)
    assert torch.equal(grey, data.test.images)


@pytest.mark.parametrize("size", [0, 4, 12, -8])
def test_an_image_size_that_is_no_multiple_of_eight_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="image_size"):
        Digits(image_size=size)


@pytest.mark.parametrize("name", ["test_fraction", "val_fraction"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Digits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["test_fraction", "val_fraction"])
def test_a_fraction_that_leaves_nothing_to_train_on_is_the_users_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Digits(**{name: 0.9999}).load()  # type: ignore[arg-type]
