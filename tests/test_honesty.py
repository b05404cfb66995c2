"""No test sample reaches training, warmup, scoring or selection; the test part is read at the end.

Of every kind of data set there are two that differ in their test samples alone. All that a run
makes before its final evaluation has to be the same, bit for bit.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import LABELS, TINY, config, image_folder, plan, tiny_run, untimed
from torch import Tensor, nn

import pai.data.digits
from pai.data.bundle import DataBundle
from pai.data.cifar import Cifar
from pai.data.digits import Digits
from pai.data.graphs import Graph, NodeBundle
from pai.data.karate import karate_club
from pai.data.split import Split, stratified_split
from pai.plan import prepare
from pai.runner import run

RUN = ("scorer=fts", "training.epochs=2", "scoring.cache_dir=null", "scoring.samples_per_class=4")
ANY_MODEL = [override for override in TINY if not override.startswith("model.")]
RESNET = [override for override in TINY if override.startswith("model.")]
ANOTHER = np.random.default_rng(1)


def digits(folder: Path, patch: pytest.MonkeyPatch, *, other: bool) -> list[str]:
    """Replace the pixels of the images that are held out for the test."""
    everything = pai.data.digits._read(repeat=1)
    test, _ = stratified_split(everything.labels, 0.2, 0)
    if other:
        everything.images[test] = 255 - everything.images[test]
    patch.setattr(pai.data.digits, "_read", lambda repeat: everything)
    return [*RESNET]


def repaint(folder: Path) -> None:
    for path in sorted(folder.rglob("*.*")):
        if path.suffix in (".png", ".JPEG"):
            with Image.open(path) as image:
                side = image.size
            noise = ANOTHER.integers(0, 256, (*side, 3), np.uint8)
            Image.fromarray(noise).save(path)


def images(name: str, folder: Path, patch: pytest.MonkeyPatch, *, other: bool) -> list[str]:
    """Write the test images of a folder anew."""
    root = image_folder(folder / "images", side=8)
    if other:
        repaint(root / "test")
    return [f"dataset={name}", f"dataset.root={root}", "dataset.image_size=8", *RESNET]


def streamed(folder: Path, patch: pytest.MonkeyPatch, *, other: bool) -> list[str]:
    workers = ["dataset.resize_size=8", "dataset.num_workers=0"]
    return [*images("imagefolder_streamed", folder, patch, other=other), *workers]


def tinyimagenet(folder: Path, patch: pytest.MonkeyPatch, *, other: bool) -> list[str]:
    from test_tinyimagenet import make_layout

    root = make_layout(folder, per_class=8)
    if other:
        repaint(root / "val")
    return ["dataset=tinyimagenet", f"dataset.root={root}", "training.batch_size=8", *RESNET]


def cifar(folder: Path, patch: pytest.MonkeyPatch, *, other: bool) -> list[str]:
    """Put noise in place of the published images, for the test other noise."""

    def read(options: Cifar, *, train: bool) -> Split:
        stream = torch.Generator().manual_seed(2 * train + other * (not train))
        pixels = torch.randint(256, (100, 3, 32, 32), generator=stream, dtype=torch.uint8)
        return Split(pixels, torch.arange(100) % 10)

    patch.setattr(Cifar, "_read", read)
    return ["dataset=cifar10", "training.batch_size=50", *RESNET]


def text(name: str, folder: Path, patch: pytest.MonkeyPatch, *, other: bool) -> list[str]:
    """Reverse the last tenth of a text; its alphabet stays the same."""
    words = np.random.default_rng(0).choice(["so ", "it ", "goes\n", "on and "], 2000)
    whole = "".join(words)
    cut = round(len(whole) * 0.9)
    folder.mkdir()
    (folder / "text.txt").write_text(whole[:cut] + (whole[cut:][::-1] if other else whole[cut:]))
    return [f"dataset={name}", f"dataset.path={folder / 'text.txt'}", "dataset.context_length=16",
            "model.embed_dim=8", "model.depth=1"]  # fmt: skip


def karate(folder: Path, patch: pytest.MonkeyPatch, *, other: bool) -> list[str]:
    """Change the classes of the test nodes; features and edges belong to the model."""
    real = NodeBundle.from_positions
    graph = karate_club()

    def changed(graph: Graph, train: Tensor, val: Tensor, test: Tensor) -> NodeBundle:
        labels = graph.labels.clone()
        labels[test] = 1 - labels[test]
        return real(dataclasses.replace(graph, labels=labels), train, val, test)

    if other:
        patch.setattr(NodeBundle, "from_positions", staticmethod(changed))
    assert graph.num_classes == 2
    return ["dataset=karate", "scorer=snip"]


KINDS: dict[str, Callable[..., list[str]]] = {
    "digits": digits, "cifar": cifar, "karate": karate, "tinyimagenet": tinyimagenet,
    "streamed": streamed,
    "imagefolder": functools.partial(images, "imagefolder"),
    "text": functools.partial(text, "text"),
    "text_bpe": functools.partial(text, "text_bpe"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_test_samples_change_nothing_but_the_result_on_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "data"))
    records = []
    for other in (False, True):
        with monkeypatch.context() as patch:
            folder = tmp_path / ("two" if other else "one")  # alike in length, which seeds noise
            overrides = KINDS[kind](folder, patch, other=other)
            chosen = config(*ANY_MODEL, *RUN, *overrides)
            records.append(run(prepare(chosen), tmp_path / f"run-{other}", LABELS))
    one, another = records
    assert one["metrics"]["test_loss"] != another["metrics"]["test_loss"]
    for key in ("warmup", "scoring", "mask", "cost", "baseline"):
        assert one[key] == another[key], key
    assert untimed(one["history"]) == untimed(another["history"])
    validated = [{k: v for k, v in r["metrics"].items() if "test" not in k} for r in records]
    assert validated[0] == validated[1]
    for name in ("mask.safetensors", "model.safetensors", "scores.json"):
        files = [(tmp_path / f"run-{other}" / name).read_bytes() for other in (False, True)]
        assert files[0] == files[1], name


@dataclasses.dataclass(frozen=True)
class Watched(Split):
    """A part that notes when which of its images are read."""

    name: str
    reads: list[tuple[str, list[int]]]

    def to(self, device: torch.device) -> "Watched":
        return self

    def read(self, positions: Tensor, *rest: Any, **options: Any) -> Iterator[Any]:
        self.reads.append((self.name, positions.tolist()))
        return super().read(positions, *rest, **options)


@dataclasses.dataclass(frozen=True)
class WatchedDigits(Digits):
    reads: list[tuple[str, list[int]]] = dataclasses.field(default_factory=list)

    def load(self) -> DataBundle[Split]:
        data = super().load()
        parts: dict[str, Any] = {
            name: Watched(part.images, part.labels, name, self.reads)
            for name, part in (("train", data.train), ("val", data.val), ("test", data.test))
        }
        return dataclasses.replace(data, **parts)


@pytest.mark.parametrize("more", [(), ("baseline=lottery_ticket", "baseline.rounds=2")])
def test_the_test_part_is_read_once_by_each_of_the_two_networks_that_are_reported(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    watched = WatchedDigits()
    record = tiny_run(tmp_path, *RUN, *more, dataset=watched)
    names = [name for name, _ in watched.reads]
    first = names.index("test")
    rounds = len(record["baseline"]["rounds"])
    assert rounds == (2 if more else 0)
    last_training = max(at for at, name in enumerate(names) if name == "train")
    if not more:
        assert names[first - 1 :] == ["val", "test", "test"]
        assert last_training < first
        assert names.count("val") == 2 + 1  # after each epoch and at the end
    assert names[-2:] == ["test", "test"]
    assert names.count("test") == 2 * (1 + rounds)
    everything = list(range(record["data"]["test"]))
    assert all(positions == everything for name, positions in watched.reads if name == "test")


def test_the_validation_part_chooses_the_epoch_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DataBundle.from_train_and_test.__func__  # type: ignore[attr-defined]

    def changed(cls: Any, *parts: Any, **options: Any) -> Any:
        data = real(cls, *parts, **options)
        val = dataclasses.replace(data.val, images=255 - data.val.images)
        return dataclasses.replace(data, val=val)

    one = tiny_run(tmp_path / "one", *RUN)
    monkeypatch.setattr(DataBundle, "from_train_and_test", classmethod(changed))
    another = tiny_run(tmp_path / "another", *RUN)
    assert one["metrics"]["val_loss"] != another["metrics"]["val_loss"]
    assert one["mask"] == another["mask"]
    assert one["metrics"]["test_loss"] == another["metrics"]["test_loss"]
    for name in ("mask.safetensors", "model.safetensors", "scores.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "another" / name).read_bytes()


def test_the_network_never_sees_a_test_image_before_the_end(tmp_path: Path) -> None:
    seen: list[tuple[bool, set[bytes]]] = []
    made = plan(*RUN)
    data = made.dataset.load()

    def hashes(inputs: Tensor) -> set[bytes]:
        return {row.numpy().tobytes() for row in inputs.detach().contiguous()}

    def build() -> nn.Module:
        model = made.build_model()
        model.register_forward_pre_hook(
            lambda module, args: seen.append((torch.is_grad_enabled(), hashes(args[0])))
        )
        return model

    tiny_run(tmp_path, *RUN, build_model=build)
    test = set().union(*(hashes(inputs) for inputs, _ in data.batches(data.test, 512)))
    train = set().union(*(hashes(x) for x, _ in data.batches(data.train, 512)))
    assert len(test) == 359 and not test & train
    when = [at for at, (_, inputs) in enumerate(seen) if inputs & test]
    assert len(when) == 2 == len(seen) - when[0]
    assert any(graded for graded, _ in seen)
