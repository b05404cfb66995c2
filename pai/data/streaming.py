"""Parts of a data set that are decoded from their files batch by batch, in worker processes.

Every task carries the random numbers of its images, so what comes out depends neither on the
number of workers nor on which of them does it.

Legend: N images, B of a batch, H x W pixels of a file, S the side of what comes out.
"""

import functools
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pai.data.augment import Augment
from pai.data.decode import decode
from pai.data.same_files import file_fingerprints
from pai.data.shares import Batch
from pai.errors import RunError

_IMAGES_PER_TASK = 32  # a batch is the work of several workers: the first one comes sooner


@dataclass(frozen=True)
class Task:
    """Which files to decode, and how to change them: resize and crop, or augment."""

    files: np.ndarray[Any, Any]
    augment: Augment | None
    draws: np.ndarray[Any, Any] | None


class Decoder(Dataset[Tensor | str]):
    """Runs in the workers: a task becomes images ``[B, 3, S, S]`` (uint8), or says what failed."""

    def __init__(self, paths: Sequence[str], resize_size: int, image_size: int) -> None:
        # One array, because workers would come to own a copy of every str they touch.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self._resize_size, self._image_size = resize_size, image_size

    @functools.cached_property
    def fingerprints(self) -> list[bytes]:
        """One for each file (:func:`pai.data.same_files.file_fingerprints`)."""
        return file_fingerprints([os.fsdecode(path) for path in self._paths])

    def __getitem__(self, task: Task) -> Tensor | str:
        """Return the images of ``task``."""
        images = []
        draws = None if task.draws is None else torch.from_numpy(task.draws)
        for number, path in enumerate(self._paths[task.files]):
            try:
                image = decode(os.fsdecode(path))[None]
            except RunError as error:
                return str(error)
            if task.augment is None:
                images.append(self._center(image))
            else:
                assert draws is not None, "draws belong to augment"
                images.append(task.augment(image, draws[number : number + 1]))
        return torch.cat(images).contiguous()

    def _center(self, image: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        resized = functional.resize(image, [self._resize_size], antialias=True)
        return functional.center_crop(resized, [self._image_size] * 2)


class Workers:
    """Worker processes that stay alive from one epoch to the next, shared by all parts."""

    def __init__(self, decoder: Decoder, num_workers: int) -> None:
        self.decoder = decoder
        self.num_workers = num_workers
        self._idle: list[tuple[DataLoader[Any], list[Task]]] = []
        # A loader that is found dead as part of a cycle (with the traceback of a failed run, say)
        # needs five seconds to stop each worker. One that is held from elsewhere stops at once.
        self._all: list[DataLoader[Any]] = []
        weakref.finalize(self, self._all.clear)

    def run(self, tasks: Sequence[Task], *, pin_memory: bool) -> Iterator[Tensor]:
        """Yield the images of each task, in order.

        A second iteration that starts before the first has ended gets workers of its own.

        Raises:
            RunError: an image cannot be decoded; its path is named.
        """
        loader, queue = self._idle.pop() if self._idle else self._start(pin_memory)
        queue[:] = tasks
        try:
            for images in loader:
                if isinstance(images, str):
                    raise RunError(images)
                yield images
        finally:
            self._idle.append((loader, queue))

    def _start(self, pin_memory: bool) -> tuple[DataLoader[Any], list[Task]]:
        import torchvision.transforms.v2  # noqa: F401  (once, before the workers are forked)

        queue: list[Task] = []
        loader: DataLoader[Any] = DataLoader(
            self.decoder, sampler=queue, batch_size=None, collate_fn=_unchanged,
            num_workers=self.num_workers, persistent_workers=self.num_workers > 0,
            pin_memory=pin_memory, generator=torch.Generator(),  # else it draws from the global one
        )  # fmt: skip
        self._all.append(loader)
        return loader, queue


def _unchanged(images: Any) -> Any:
    return images


@dataclass(frozen=True)
class StreamedSplit:
    """Files with their labels ``[N]``; images are decoded when they are read."""

    workers: Workers
    files: Tensor  # [N], positions among all files of the workers
    labels: Tensor
    mean: Tensor  # [3], pixels in 0..1
    std: Tensor
    device: torch.device
    find_duplicates: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "StreamedSplit":
        """Return the images at ``index``, in that order."""
        return replace(self, files=self.files[index], labels=self.labels[index])

    def to(self, device: torch.device) -> "StreamedSplit":
        """Return the split with its batches on ``device``."""
        return replace(self, device=device)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return the given mean and standard deviation: nothing is measured."""
        return self.mean, self.std

    def fingerprints(self) -> list[bytes] | None:
        """Return a fingerprint of each file, or ``None`` if files are not compared."""
        if not self.find_duplicates:
            return None
        prints = self.workers.decoder.fingerprints
        return [prints[file] for file in self.files.tolist()]

    def read(
        self, positions: Tensor, sizes: Sequence[int], augment: Augment | None = None,
        draws: Tensor | None = None,
    ) -> Iterator[Batch]:  # fmt: skip
        """Yield the images at ``positions`` as batches of ``sizes``; see :class:`Part`.

        Raises:
            RunError: an image cannot be decoded; its path is named.
        """
        cuts = [list(_cuts(size)) for size in sizes]
        steps = list(chain.from_iterable(cuts))
        files = self.files[positions].split(steps)
        rows = [None] * len(steps) if draws is None else [d.numpy() for d in draws.split(steps)]
        tasks = [Task(f.numpy(), augment, row) for f, row in zip(files, rows, strict=True)]
        chunks = self.workers.run(tasks, pin_memory=self.device.type == "cuda")
        labels = self.labels[positions].to(self.device).split(list(sizes))
        for batch_labels, batch_cuts in zip(labels, cuts, strict=True):
            chunks_of_batch = islice(chunks, len(batch_cuts))
            images = [chunk.to(self.device, non_blocking=True) for chunk in chunks_of_batch]
            yield torch.cat(images), batch_labels


def _cuts(size: int) -> Iterator[int]:
    for first in range(0, size, _IMAGES_PER_TASK):
        yield min(_IMAGES_PER_TASK, size - first)
