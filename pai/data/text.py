"""Text: a language model predicts each token from those before it.

Legend: M tokens of a part, L tokens of a sequence (``context_length``), B sequences of a batch.
"""

import functools
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pai.data.corpus import Source, find_source, text_sha256
from pai.data.options import check_fraction
from pai.data.shares import Batch, IndexedBatches
from pai.data.task import TEXT, Task
from pai.data.tokens import Characters, Encoding, Tokenizer
from pai.errors import ConfigError
from pai.seeding import generator


@dataclass(frozen=True)
class TextSpec:
    """Vocabulary and sequence length, and how many training sequences there are."""

    vocab_size: int
    context_length: int
    smallest_class: int  # text has no classes: all training sequences
    task: ClassVar[Task] = TEXT

    @property
    def training_samples(self) -> int:
        """Training sequences."""
        return self.smallest_class

    @property
    def scoring_classes(self) -> int:
        """Text has no classes."""
        return 1

    def room(self) -> str:
        """Say how many sequences there are."""
        return (
            f"text has no classes, so it is the number of sequences in all, and the train part "
            f"has {self.smallest_class}"
        )

    def arguments(self, parameters: Collection[str]) -> dict[str, Any]:
        """Return the size of the vocabulary and the longest sequence."""
        return {"vocab_size": self.vocab_size, "context_length": self.context_length}

    def inputs(self) -> Tensor:
        """Return two sequences of the first token."""
        return torch.zeros(2, self.context_length, dtype=torch.int64)

    def outputs(self) -> tuple[int, ...]:
        """Return the shape of the logits of two sequences."""
        return 2, self.vocab_size, self.context_length

    def says(self) -> str:
        """Return the length of a sequence, and the option that changes it."""
        return (
            f"sequences of {self.context_length} tokens (dataset.context_length) from a "
            f"vocabulary of {self.vocab_size}"
        )

    def describe(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True)
class Tokens:
    """The tokens of one part ``[M]`` (int32), cut into sequences of L.

    Sequence s is the tokens from ``s`` on, and its targets are the tokens from ``s + 1`` on.
    """

    tokens: Tensor
    length: int

    def __len__(self) -> int:
        """Return the number of sequences that do not overlap, the last maybe shorter."""
        return self.full + bool((len(self.tokens) - 1) % self.length)

    @property
    def full(self) -> int:
        """The number of them that have the full length."""
        return (len(self.tokens) - 1) // self.length

    def to(self, device: torch.device) -> "Tokens":
        """Return the part on ``device``."""
        return replace(self, tokens=self.tokens.to(device))

    def read(self, starts: Tensor) -> Batch:
        """Return the sequences ``[B, L]`` that begin at ``starts``, and their targets (int64)."""
        steps = torch.arange(self.length + 1, device=self.tokens.device)
        windows = self.tokens[starts.to(self.tokens.device)[:, None] + steps].long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def rest(self) -> Batch:
        """Return what is left after the full sequences, as a batch of one shorter sequence."""
        window = self.tokens[self.full * self.length :].long()[None]
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()


@dataclass(frozen=True)
class TextBundle:
    """Contiguous train, validation and test parts of a text, in this order."""

    train: Tokens
    val: Tokens
    test: Tokens
    encoding: Encoding
    sha256: str  # of the text in UTF-8
    task: ClassVar[Task] = TEXT

    def to(self, device: torch.device) -> "TextBundle":
        """Return the bundle with its tokens on ``device``."""
        train, val, test = (part.to(device) for part in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    def describe(self) -> dict[str, Any]:
        """Return the hash of the text, the vocabulary, and how many tokens each part has."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {
            "text_sha256": self.sha256,
            "vocabulary": self.encoding.describe(),
            "tokens": {name: len(part.tokens) for name, part in parts.items()},
        }

    def batches(
        self, part: Tokens, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> IndexedBatches:
        """Return all of ``part``: every token but its first is a target exactly once.

        What is left after the full sequences is a batch of its own, of the first process.
        """
        starts = torch.arange(part.full) * part.length
        last = part.rest if part.full < len(part) else None
        return IndexedBatches(
            part.read, batch_size, starts, "sequences", last, rank=rank, world_size=world_size
        )

    def warmup_batches(self, batch_size: int, seed: int) -> IndexedBatches:
        """Return the full sequences of the train part in one seeded random order."""
        order = torch.randperm(self.train.full, generator=generator(seed, "warmup_order"))
        return IndexedBatches(self.train.read, batch_size, order * self.train.length, "sequences")

    def training_batches(
        self, batch_size: int, seed: int, epoch: int, *, rank: int = 0, world_size: int = 1
    ) -> IndexedBatches:
        """Return sequences that do not overlap, from a random offset, in random order.

        Their number is the same in every epoch. So that the offset can be anything, an epoch
        leaves out one to two sequences' worth of tokens, at both ends, others each time.
        """
        part = self.train
        stream = generator(seed, f"order/{epoch}")
        count = max(1, part.full - 1)
        room = len(part.tokens) - 1 - count * part.length
        offset = int(torch.randint(room + 1, (), generator=stream))
        starts = torch.randperm(count, generator=stream) * part.length + offset
        return IndexedBatches(
            part.read, batch_size, starts, "sequences", rank=rank, world_size=world_size
        )

    def scoring_batches(self, samples_per_class: int, batch_size: int, seed: int) -> IndexedBatches:
        """Return ``samples_per_class`` sequences of the train part in all, at random, no overlap.

        Raises:
            ConfigError: the train part has fewer.
        """
        part = self.train
        if part.full < samples_per_class:
            raise ConfigError(
                f"scoring.samples_per_class: {samples_per_class} sequences asked for, but the "
                f"train part has only {part.full}"
            )
        order = torch.randperm(part.full, generator=generator(seed, "scoring_subset"))
        starts = order[:samples_per_class] * part.length
        return IndexedBatches(part.read, batch_size, starts, "sequences")


@dataclass(frozen=True)
class Text:
    """Next-token prediction on any text file (UTF-8; ``.xz`` and ``.gz`` are unpacked).

    ``path=None`` reads sources of the standard library of the Python that runs, real text that is
    always there; it depends on the version of Python, and the record has its hash. The text is cut
    at two characters: the last ``test_fraction`` of it is the test part, ``val_fraction`` before
    that the validation part, the rest the train part. No sequence crosses a cut.
    """

    path: str | None = None
    tokenizer: Tokenizer = field(default_factory=Characters)
    context_length: int = 64
    val_fraction: float = 0.1
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.context_length < 1:
            raise ValueError(f"context_length must be at least 1, got {self.context_length}")
        check_fraction("val_fraction", self.val_fraction)
        check_fraction("test_fraction", self.test_fraction)
        if not self.val_fraction + self.test_fraction < 1:
            raise ValueError(
                f"val_fraction and test_fraction leave nothing to train on: "
                f"{self.val_fraction} + {self.test_fraction}"
            )
        if not isinstance(self.tokenizer, Tokenizer):
            raise ValueError(f"tokenizer: {self.tokenizer!r} is no tokenizer")

    def check(self) -> TextSpec:
        """Read and encode the text (once: :meth:`load` finds it done) and return its sizes.

        Raises:
            ConfigError: the file is not there, is no text, or is too short.
        """
        bundle = self.load()
        return TextSpec(bundle.encoding.size, self.context_length, bundle.train.full)

    def load(self) -> TextBundle:
        """Return the bundle; errors as in :meth:`check`."""
        return _load(self, find_source(self.path))


@functools.lru_cache(maxsize=2)
def _load(options: Text, source: Source) -> TextBundle:
    text = source.read()
    stop = round(len(text) * (1 - options.test_fraction))
    cut = round(len(text) * (1 - options.test_fraction - options.val_fraction))
    pieces = {"train": text[:cut], "validation": text[cut:stop], "test": text[stop:]}
    encoding = options.tokenizer.learn(text, pieces["train"])
    parts = []
    for name, piece in pieces.items():
        part = Tokens(encoding.encode(piece), options.context_length)
        if part.full < 1:
            raise ConfigError(
                f"dataset.context_length: the {name} part has {len(part.tokens)} tokens, and one "
                f"sequence of {options.context_length} and its targets need "
                f"{options.context_length + 1}; use a longer text or a shorter context"
            )
        parts.append(part)
    train, val, test = parts
    return TextBundle(train, val, test, encoding, text_sha256(text))
