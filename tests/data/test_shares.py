"""A batch shared by several processes: the shares of all ranks are the batch of one process."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import plan
from torch import Tensor

from pai.data.augment import RandomCropFlip
from pai.data.bundle import Batches, DataBundle, Split
from pai.errors import ConfigError
from pai.training.loop import check_parts


def random_bundle(count: int) -> DataBundle[Split]:
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 5, 4), generator=stream, dtype=torch.uint8)
    part = Split(images, torch.arange(count))
    return DataBundle.from_train_and_test(
        part, part, val=part, num_classes=count, val_fraction=0.1, split_seed=0,
        augment=RandomCropFlip(2, horizontal_flip=True),
    )  # fmt: skip


def ranks(batches: Batches, world_size: int) -> list[list[tuple[Tensor, Tensor]]]:
    return [list(replace(batches, rank=rank, world_size=world_size)) for rank in range(world_size)]


def joined(shares: tuple[tuple[Tensor, Tensor], ...]) -> tuple[Tensor, Tensor]:
    return torch.cat([inputs for inputs, _ in shares]), torch.cat([labels for _, labels in shares])


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("training", [False, True])
def test_the_shares_of_all_ranks_are_exactly_the_batches_of_one_process(
    world_size: int, training: bool
) -> None:
    data = random_bundle(42)  # batches of 11, 11, 11 and 9, which no world size divides

    def batches(rank: int = 0, world_size: int = 1) -> Batches:
        if training:
            return data.training_batches(11, 3, 2, rank=rank, world_size=world_size)
        return data.batches(data.test, 11, rank=rank, world_size=world_size)

    shared = [batches(rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shared} == {len(batches())} == {4}
    for whole, *shares in zip(batches(), *shared, strict=True):
        inputs, labels = joined(tuple(shares))
        assert torch.equal(inputs, whole[0]) and torch.equal(labels, whole[1])


@settings(max_examples=250, deadline=None)
@given(
    count=st.integers(1, 60), batch_size=st.integers(1, 20), world_size=st.integers(1, 6),
    for_batchnorm=st.booleans(),
)  # fmt: skip
def test_every_rank_gets_as_many_batches_and_no_image_is_lost_or_seen_twice(
    count: int, batch_size: int, world_size: int, for_batchnorm: bool
) -> None:
    split = random_bundle(max(count, 3)).train.subset(torch.arange(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    one = torch.ones(2)
    if min(batch_size, count) < world_size:
        with pytest.raises(ConfigError, match=f"shared by {world_size} processes"):
            Batches(split, one, one, batch_size, order, world_size=world_size)
        return
    batches = Batches(split, one, one, batch_size, order, for_batchnorm=for_batchnorm)
    shared = ranks(batches, world_size)
    sizes = [[len(labels) for _, labels in batches] for batches in shared]
    assert {len(batches) for batches in shared} == {
        len(replace(batches, world_size=world_size, rank=world_size - 1))
    }
    seen = torch.cat([joined(shares)[1] for shares in zip(*shared, strict=True)])
    assert torch.equal(seen, order)
    for together in zip(*sizes, strict=True):
        assert max(together) - min(together) <= 1
        assert min(together) >= 1
        if for_batchnorm and min(batch_size, count) >= 2 * world_size:
            assert min(together) >= 2
    assert all(sum(together) == batch_size for together in list(zip(*sizes, strict=True))[:-1])
    assert sum(size[-1] for size in sizes) < batch_size + 2 * world_size


def test_draws_belong_to_images_whatever_the_batch_size_and_the_number_of_processes() -> None:
    data = random_bundle(40)

    def by_image(batch_size: int, world_size: int) -> Tensor:
        shares = ranks(data.training_batches(batch_size, 0, 5), world_size)
        inputs, labels = joined(tuple(batch for share in shares for batch in share))
        return inputs[labels.argsort()]

    expected = by_image(40, 1)
    for batch_size, world_size in ((7, 1), (10, 2), (13, 4)):
        assert torch.equal(by_image(batch_size, world_size), expected)
    plain = torch.cat([inputs for inputs, _ in data.batches(data.train, 40)])
    assert not torch.equal(expected, plain)


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (1, 1)])
def test_a_rank_that_does_not_exist_is_refused(rank: int, world_size: int) -> None:
    data = random_bundle(12)
    with pytest.raises(ValueError, match="rank"):
        data.batches(data.test, 6, rank=rank, world_size=world_size)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_of_fewer_samples_than_processes_is_told_before_the_work(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_bundle(8)
    change: Any = {part: random_bundle(2).test}
    small = replace(data, **change)
    options = plan().training
    monkeypatch.setattr("pai.training.loop.world_size", lambda: 3)
    check_parts(data, options)
    with pytest.raises(ConfigError) as caught:
        check_parts(small, options)
    assert str(caught.value) == (
        "a part of 2 images cannot be shared by 3 processes; use fewer processes"
    )
