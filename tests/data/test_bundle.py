from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pai.data.augment import RandomCropFlip
from pai.data.bundle import DataBundle, Split
from pai.data.split import channel_statistics, held_out, stratified_split
from pai.errors import ConfigError

CLASSES = 3
quick = settings(max_examples=25, deadline=None)


def numbered_split(labels: Tensor, first: int = 0) -> Split:
    """Images 2x4x5 of random pixels whose first two pixels spell their own number."""
    stream = torch.Generator().manual_seed(first)
    images = torch.randint(0, 256, (len(labels), 2, 4, 5), generator=stream, dtype=torch.uint8)
    numbers = torch.arange(first, first + len(labels))
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers // 256, numbers % 256
    return Split(images, labels)


def numbers_of(images: Tensor) -> list[int]:
    return (images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()).tolist()


def bundle(
    count: int = 60, val_fraction: float = 0.2, split_seed: int = 0,
    augment: RandomCropFlip | None = None,
) -> DataBundle[Split]:  # fmt: skip
    return DataBundle.from_train_and_test(
        numbered_split(torch.arange(count) % CLASSES),
        numbered_split(torch.arange(12) % CLASSES, first=1000),
        num_classes=CLASSES, val_fraction=val_fraction, split_seed=split_seed, augment=augment,
    )  # fmt: skip


def stored_pixels(data: DataBundle[Split], inputs: Tensor) -> Tensor:
    """Undo the normalisation in float64: the bytes a batch was made of."""
    mean, std = (t.double().view(1, -1, 1, 1) for t in (data.mean, data.std))
    pixels = (inputs.double() * std + mean) * 255
    assert torch.allclose(pixels, pixels.round(), atol=1e-3, rtol=0)
    return pixels.round().to(torch.uint8)


def test_the_three_parts_share_no_image_and_lose_none() -> None:
    data = bundle()
    train, val, test = (numbers_of(part.images) for part in (data.train, data.val, data.test))
    assert sorted(train + val) == list(range(60))
    assert sorted(test) == list(range(1000, 1012))
    for part in (data.train, data.val):
        expected = torch.tensor(numbers_of(part.images)) % CLASSES
        assert torch.equal(part.labels, expected)


def test_a_given_validation_part_is_used_as_it_is() -> None:
    train = numbered_split(torch.arange(30) % CLASSES)
    val = numbered_split(torch.arange(9) % CLASSES, first=500)
    test = numbered_split(torch.arange(6) % CLASSES, first=1000)
    data = DataBundle.from_train_and_test(
        train, test, val=val, num_classes=CLASSES, val_fraction=0.5, split_seed=0, augment=None
    )
    assert numbers_of(data.train.images) == list(range(30))
    assert numbers_of(data.val.images) == list(range(500, 509))


@quick
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_a_split_is_a_partition_with_the_same_share_of_each_class(
    labels: list[int], fraction: float, seed: int
) -> None:
    held, rest = stratified_split(torch.tensor(labels), fraction, seed)
    assert sorted(held.tolist() + rest.tolist()) == list(range(len(labels)))
    per_class = Counter(labels)
    held_per_class = Counter(labels[i] for i in held.tolist())
    for label, count in per_class.items():
        assert held_per_class[label] == held_out(count, fraction)
        if count > 1:
            assert held_per_class[label] >= 1
        off = abs(held_per_class[label] - fraction * count)
        assert off <= 0.5 or held_per_class[label] == 1


def test_the_split_depends_on_its_seed_and_on_nothing_else() -> None:
    labels = torch.arange(300) % 3
    torch.manual_seed(1)
    first = stratified_split(labels, 0.1, seed=7)
    torch.manual_seed(2)
    again = stratified_split(labels, 0.1, seed=7)
    other = stratified_split(labels, 0.1, seed=8)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_held_out_images_come_from_everywhere_in_a_class() -> None:
    hit = Counter[int]()
    for seed in range(200):
        hit.update(stratified_split(torch.zeros(10, dtype=torch.int64), 0.5, seed)[0].tolist())
    assert set(hit) == set(range(10))
    assert all(60 <= count <= 140 for count in hit.values())  # 100 +- 5.6 standard deviations


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_part_left_empty_is_the_users_mistake(fraction: float) -> None:
    train = numbered_split(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ConfigError, match="val_fraction"):
        DataBundle.from_train_and_test(
            train, train, num_classes=1, val_fraction=fraction, split_seed=0, augment=None
        )


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_scoring_batches_hold_exactly_so_many_train_images_of_each_class(batch_size: int) -> None:
    data = bundle(augment=RandomCropFlip(2, horizontal_flip=True))
    batches = data.scoring_batches(5, batch_size, seed=3)
    inputs = torch.cat([x for x, _ in batches])
    labels = torch.cat([y for _, y in batches])
    assert torch.equal(labels.bincount(), torch.full((CLASSES,), 5))
    images = stored_pixels(data, inputs)
    numbers = numbers_of(images)
    assert len(set(numbers)) == 5 * CLASSES
    position = {number: i for i, number in enumerate(numbers_of(data.train.images))}
    index = torch.tensor([position[number] for number in numbers])  # KeyError: not a train image
    assert torch.equal(images, data.train.images[index])  # every pixel: not augmented
    assert torch.equal(labels, data.train.labels[index])


def scored_numbers(data: DataBundle[Split], seed: int, batch_size: int = 8) -> list[int]:
    batches = data.scoring_batches(4, batch_size, seed)
    return numbers_of(torch.cat([stored_pixels(data, x) for x, _ in batches]))


def test_the_scoring_subset_depends_on_the_seed_alone() -> None:
    data = bundle()
    torch.manual_seed(0)
    first = scored_numbers(data, seed=3)
    torch.manual_seed(1)
    for _ in data.training_batches(8, seed=3, epoch=0):
        pass
    for _ in data.warmup_batches(8, seed=3):
        pass
    assert scored_numbers(data, seed=3, batch_size=5) == first
    assert scored_numbers(bundle(augment=RandomCropFlip(2)), seed=3) == first
    assert scored_numbers(data, seed=4) != first


def test_the_scoring_order_mixes_the_classes() -> None:
    (_, labels), *_ = bundle().scoring_batches(10, 100, seed=0)
    assert not torch.equal(labels, labels.sort().values)


def test_more_scoring_samples_than_a_class_has_is_the_users_mistake() -> None:
    data = bundle()
    smallest = int(data.train.labels.bincount().min())
    assert len(data.scoring_batches(smallest, 8, seed=0).order) == CLASSES * smallest
    with pytest.raises(ConfigError, match="samples_per_class"):
        data.scoring_batches(smallest + 1, 8, seed=0)


def test_a_class_without_training_images_cannot_be_scored() -> None:
    part = numbered_split(torch.arange(12) % 2)
    for num_classes in (2, 3):
        data = DataBundle.from_train_and_test(
            part, part, num_classes=num_classes, val_fraction=0.2, split_seed=0, augment=None
        )
        if num_classes == 2:
            assert len(data.scoring_batches(2, 4, seed=0).order) == 4
        else:
            with pytest.raises(ConfigError, match="class 2 has only 0"):
                data.scoring_batches(2, 4, seed=0)


def test_making_batches_leaves_the_global_generator_alone() -> None:
    data = bundle(augment=RandomCropFlip(2, horizontal_flip=True))
    before = torch.get_rng_state()
    for batches in (
        data.training_batches(8, 0, 0), data.warmup_batches(8, 0), data.scoring_batches(2, 8, 0),
        data.batches(data.val, 8),
    ):  # fmt: skip
        list(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_the_stored_images_normalised() -> None:
    data = bundle()
    inputs = torch.cat([x for x, _ in data.batches(data.train, 7)])
    mean, std = (t.double().view(1, -1, 1, 1) for t in (data.mean, data.std))
    expected = (data.train.images.double() / 255 - mean) / std
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs.double(), expected, rtol=0, atol=2e-6)
    zeros, ones = torch.zeros(2).double(), torch.ones(2).double()
    torch.testing.assert_close(inputs.double().mean((0, 2, 3)), zeros, rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.double().std((0, 2, 3), False), ones, rtol=0, atol=1e-5)


def test_batches_can_be_iterated_again_and_know_their_number() -> None:
    data = bundle()
    for batches in (data.batches(data.val, 5), data.warmup_batches(7, 0)):
        first, second = list(batches), list(batches)
        assert len(first) == len(batches) == len(second)
        for (x, y), (again_x, again_y) in zip(first, second):
            assert torch.equal(x, again_x) and torch.equal(y, again_y)


@quick
@given(count=st.integers(2, 40), batch_size=st.integers(2, 12))
def test_a_lone_trailing_image_joins_the_batch_before_for_batchnorm_only(
    count: int, batch_size: int
) -> None:
    train = numbered_split(torch.zeros(count, dtype=torch.int64))
    data = DataBundle.from_train_and_test(
        train, train, val=train, num_classes=1, val_fraction=0.1, split_seed=0, augment=None
    )
    joins = count > batch_size and count % batch_size == 1
    for batches in (data.warmup_batches(batch_size, 0), data.training_batches(batch_size, 0, 0)):
        sizes = [len(y) for _, y in batches]
        assert sum(sizes) == count
        assert sizes[:-1] == [batch_size] * (len(batches) - 1)
        assert 1 < sizes[-1] <= batch_size + joins
    assert sum(len(y) for _, y in data.batches(train, batch_size)) == count
    assert sum(len(y) for _, y in data.scoring_batches(count, batch_size, 0)) == count


def test_one_image_alone_is_still_a_batch() -> None:
    one = numbered_split(torch.zeros(1, dtype=torch.int64))
    data = DataBundle.from_train_and_test(
        one, one, val=one, num_classes=1, val_fraction=0.1, split_seed=0, augment=None
    )
    assert [len(y) for _, y in data.warmup_batches(4, 0)] == [1]


def test_each_epoch_visits_the_whole_train_part_in_its_own_order() -> None:
    data = bundle()
    orders = []
    for epoch in range(3):
        batches = list(data.training_batches(8, seed=0, epoch=epoch))
        numbers = numbers_of(torch.cat([stored_pixels(data, x) for x, _ in batches]))
        assert sorted(numbers) == sorted(numbers_of(data.train.images))
        orders.append(tuple(numbers))
    assert len(set(orders)) == 3
    again = torch.cat([x for x, _ in data.training_batches(8, seed=0, epoch=1)])
    assert tuple(numbers_of(stored_pixels(data, again))) == orders[1]


def test_augmentation_is_drawn_anew_each_epoch_and_reproducibly() -> None:
    same = numbered_split(torch.zeros(1, dtype=torch.int64)).subset(torch.zeros(40).long())
    data = DataBundle.from_train_and_test(
        same, same, val=same, num_classes=1, val_fraction=0.1, split_seed=0,
        augment=RandomCropFlip(2, horizontal_flip=True),
    )  # fmt: skip

    def shifts(seed: int, epoch: int) -> Tensor:  # one picture: only the draws differ
        ((inputs, _),) = data.training_batches(40, seed, epoch)
        return inputs

    assert torch.equal(shifts(0, 0), shifts(0, 0))
    assert not torch.equal(shifts(0, 0), shifts(0, 1))
    assert not torch.equal(shifts(0, 0), shifts(1, 0))


@quick
@given(seed=st.integers(0, 10**6), count=st.integers(1, 6), channels=st.integers(1, 4))
def test_channel_statistics_equal_the_float64_moments(seed: int, count: int, channels: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, 5, 3), generator=stream, dtype=torch.uint8)
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    torch.testing.assert_close(mean.double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.double(), pixels.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_a_constant_channel_has_standard_deviation_one() -> None:
    images = torch.full((4, 2, 3, 3), 51, dtype=torch.uint8)
    images[0, 1, 0, 0] = 52
    mean, std = channel_statistics(images)
    assert float(mean[0]) == pytest.approx(0.2)
    assert float(std[0]) == 1.0 and 0 < float(std[1]) < 0.01


def test_statistics_come_from_the_train_part_only() -> None:
    data = bundle()
    pixels = data.train.images.double() / 255
    torch.testing.assert_close(data.mean.double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    everything = torch.cat([data.train.images, data.val.images]).double() / 255
    assert not torch.allclose(data.mean.double(), everything.mean((0, 2, 3)), rtol=1e-6, atol=0)
