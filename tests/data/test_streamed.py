"""Streamed folders: the same pixels whatever the number of workers, batches and processes."""

import gc
import multiprocessing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Resize

from pai.data.augment import RandomResizedCropFlip
from pai.data.bundle import Batches, DataBundle
from pai.data.decode import decode
from pai.data.folders import list_class_folders
from pai.data.streamedfolder import StreamedImageFolder
from pai.data.streaming import StreamedSplit
from pai.errors import ConfigError, RunError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 45 training images in odd sizes and of a test image of each mode."""
    root = tmp_path_factory.mktemp("streamed")
    stream = np.random.default_rng(0)
    for part, count in (("train", 45), ("val", len(MODES))):
        for name in ("ants", "bees"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                width, height = (int(side) for side in stream.integers(9, 40, 2))
                coarse = stream.integers(0, 256, (3, 4, 3), np.uint8)
                image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
                mode = MODES[number % len(MODES)] if part == "val" else "RGB"
                if mode == "I;16":
                    image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
                else:
                    image = image.convert(mode)
                image.save(folder / f"{number:02}.{'tif' if mode == 'CMYK' else 'png'}")
    return root


def streamed(root: Path, num_workers: int = 0, **options: float) -> StreamedImageFolder:
    return StreamedImageFolder(
        str(root), image_size=12, resize_size=14, val_fraction=0.2, mean=MEAN, std=STD,
        num_workers=num_workers, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def everything(batches: Batches) -> tuple[Tensor, Tensor]:
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def pixels(inputs: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    values = (inputs * std + mean) * 255
    assert torch.allclose(values, values.round(), atol=1e-3, rtol=0)
    return values.round().to(torch.uint8)


def test_parts_are_disjoint_and_complete_and_labels_are_those_of_the_folders(root: Path) -> None:
    data = streamed(root).load()
    paths = data.train.workers.decoder._paths
    listed = list_class_folders(str(root))
    found: dict[Path, StreamedSplit] = {}
    for part in (data.train, data.val, data.test):
        for file, label in zip(part.files.tolist(), part.labels.tolist(), strict=True):
            path = Path(paths[file].decode())
            assert path.parent.name == ("ants", "bees")[label]
            assert found.setdefault(path, part) is part
    assert {str(path) for path in found} == {*listed.train.paths(), *listed.test.paths()}
    assert (len(data.train), len(data.val), len(data.test)) == (72, 18, 16)
    assert {path.parts[-3] for path, part in found.items() if part is data.test} == {"val"}


def test_the_spec_says_what_loading_finds(root: Path) -> None:
    dataset = streamed(root)
    spec, data = dataset.check(), dataset.load()
    assert spec.num_classes == data.num_classes == 2
    assert spec.smallest_class == int(data.train.labels.bincount().min())
    ((inputs, _), *_) = data.batches(data.val, 5)
    assert inputs.shape == (5, spec.channels, spec.height, spec.width)


def test_evaluation_is_resize_and_center_crop_of_torchvision(root: Path) -> None:
    data = streamed(root).load()
    inputs, labels = everything(data.batches(data.test, 5))
    assert torch.equal(labels, data.test.labels)
    assert inputs.dtype == torch.float32 and inputs.is_contiguous()
    paths = list_class_folders(str(root)).test.paths()
    for path, image in zip(paths, pixels(inputs), strict=True):
        picture = Image.fromarray(decode(path).permute(1, 2, 0).numpy())
        expected = CenterCrop(12)(Resize(14, antialias=True)(picture))
        difference = torch.from_numpy(np.array(expected)).permute(2, 0, 1).int() - image.int()
        assert int(difference.abs().max()) <= 1  # the two round differently


def test_images_without_colour_get_three_equal_channels(root: Path) -> None:
    data = streamed(root).load()
    images = pixels(everything(data.batches(data.test, 12))[0])
    grey = [bool((image == image[:1]).all()) for image in images]
    assert grey == [mode in ("L", "LA", "1", "I;16") for mode in MODES] * 2


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_nothing(root: Path, num_workers: int) -> None:
    alone, helped = (streamed(root, count).load() for count in (0, num_workers))

    def all_batches(data: DataBundle[StreamedSplit]) -> list[Batches]:
        return [
            data.training_batches(50, 0, 0), data.training_batches(50, 0, 1),
            data.batches(data.val, 7), data.warmup_batches(40, 0), data.scoring_batches(3, 4, 0),
        ]  # fmt: skip

    for ours, theirs in zip(all_batches(alone), all_batches(helped), strict=True):
        pairs = list(zip(ours, theirs, strict=True))
        assert len(pairs) == len(ours)
        for (inputs, labels), (other_inputs, other_labels) in pairs:
            assert torch.equal(inputs, other_inputs) and torch.equal(labels, other_labels)
    assert len(helped.train.workers._idle) == 1  # the same workers all the time


def test_training_images_are_cut_by_the_draws_of_their_epoch(root: Path) -> None:
    data = streamed(root, min_area=0.3).load()
    assert data.augment == RandomResizedCropFlip(12, 0.3, horizontal_flip=True)
    batches = data.training_batches(31, 5, 2)
    assert batches.draws is not None and batches.augment is not None
    paths = data.train.workers.decoder._paths[data.train.files.numpy()]
    inputs, labels = everything(batches)
    assert torch.equal(labels, data.train.labels[batches.order])
    for position, image in zip(batches.order.tolist(), pixels(inputs), strict=True):
        whole = decode(paths[position].decode())[None]
        expected = batches.augment(whole, batches.draws[position : position + 1])
        assert torch.equal(image, expected[0])


def test_epochs_differ_and_can_be_repeated(root: Path) -> None:
    data = streamed(root).load()
    first, second = (everything(data.training_batches(40, 0, epoch)) for epoch in (0, 1))
    again = everything(data.training_batches(40, 0, 0))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])
    by_batch = data.training_batches(40, 0, 0)
    assert torch.equal(everything(by_batch)[0], everything(by_batch)[0])


def test_shares_of_all_ranks_are_the_batches_of_one_process(root: Path) -> None:
    data = streamed(root).load()
    alone = list(data.training_batches(33, 0, 0))
    shared = [list(data.training_batches(33, 0, 0, rank=r, world_size=3)) for r in range(3)]
    for (inputs, labels), *shares in zip(alone, *shared, strict=True):
        assert torch.equal(inputs, torch.cat([x for x, _ in shares]))
        assert torch.equal(labels, torch.cat([y for _, y in shares]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_iteration_may_be_left_early_or_run_beside_another(root: Path, num_workers: int) -> None:
    data = streamed(root, num_workers).load()
    expected = list(data.batches(data.train, 10))
    for _ in range(3):
        first = next(iter(data.training_batches(10, 0, 0)))
        assert len(first[1]) == 10
        for (inputs, _), (wanted, _) in zip(data.batches(data.train, 10), expected, strict=True):
            assert torch.equal(inputs, wanted)
    pairs = zip(data.batches(data.train, 10), data.batches(data.train, 10), strict=True)
    for ((ours, _), (theirs, _)), (wanted, _) in zip(pairs, expected, strict=True):
        assert torch.equal(ours, wanted) and torch.equal(theirs, wanted)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_ends_the_epoch_with_its_path(
    root: Path, num_workers: int, tmp_path: Path
) -> None:
    for part in ("train", "val"):
        for name in ("ants", "bees"):
            (tmp_path / part / name).mkdir(parents=True)
            for path in (root / part / name).iterdir():
                (tmp_path / part / name / path.name).symlink_to(path)
    data = streamed(tmp_path, num_workers).load()
    list(data.batches(data.train, 20))
    broken = tmp_path / "train" / "bees" / "07.png"
    content = broken.read_bytes()
    broken.unlink()
    for damaged in (content[: len(content) // 2], b"", None):
        if damaged is not None:
            broken.write_bytes(damaged)
        else:
            broken.unlink()
        with pytest.raises(RunError, match=r"cannot decode image .*train.bees.07\.png") as caught:
            list(data.training_batches(20, 0, 0)) + list(data.batches(data.val, 20))
        assert "\n" not in str(caught.value)
    broken.write_bytes(content)
    assert len(everything(data.batches(data.train, 20))[1]) == len(data.train)


def test_workers_of_an_unfinished_iteration_that_is_forgotten_stop_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers that are not told to stop look whether they should every five seconds. Here that is
    # longer than they are waited for, so that they are terminated (whereupon they too exit with 0).
    monkeypatch.setattr("torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL", 60)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 10)
    terminated, terminate = [], BaseProcess.terminate

    def noted(process: BaseProcess) -> None:
        terminated.append(process)
        terminate(process)

    monkeypatch.setattr(BaseProcess, "terminate", noted)
    before = set(multiprocessing.active_children())
    data = streamed(root, 2).load()
    unfinished = iter(data.batches(data.train, 10))
    next(unfinished)
    assert len(set(multiprocessing.active_children()) - before) == 2
    cycle: list[Any] = [data, unfinished]
    cycle.append(cycle)
    del data, unfinished, cycle
    gc.collect()
    assert not set(multiprocessing.active_children()) - before
    assert terminated == []


def test_making_batches_leaves_the_global_generator_alone(root: Path) -> None:
    data = streamed(root).load()
    before = torch.get_rng_state()
    everything(data.training_batches(20, 0, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_normalisation_is_the_given_one(root: Path) -> None:
    data = streamed(root).load()
    assert data.mean.tolist() == pytest.approx(MEAN) and data.std.tolist() == pytest.approx(STD)
    default = StreamedImageFolder(str(root)).load()
    assert default.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_workers_are_the_cores_shared_by_the_processes_of_a_machine(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    for processes, expected in ((None, 12), ("4", 3), ("100", 1)):
        if processes is not None:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert StreamedImageFolder(str(root)).load().train.workers.num_workers == expected


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image_size", 0), ("resize_size", 223), ("val_fraction", 0.0), ("num_workers", -1),
        ("mean", [0.5]), ("std", [0.2, 0.2]), ("std", [0.2, 0.0, 0.2]), ("min_area", 0.0),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        StreamedImageFolder("anywhere", **{option: value})  # type: ignore[arg-type]


def test_a_mistake_in_the_folder_is_named(tmp_path: Path) -> None:
    for attempt in (streamed(tmp_path).check, streamed(tmp_path).load):
        with pytest.raises(ConfigError, match=r"dataset\.root: .*no folder train/"):
            attempt()
