"""From text to numbers and back: characters, bytes, byte-pair encoding."""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pai.errors import ConfigError


class Encoding(Protocol):
    """A vocabulary. Decoding what was encoded gives the same text, to the character."""

    @property
    def size(self) -> int:
        """The number of tokens that can occur."""

    def encode(self, text: str) -> Tensor:
        """Return token numbers ``[M]`` (int32)."""

    def decode(self, tokens: Tensor) -> str:
        """Return the text."""

    def describe(self) -> dict[str, Any]:
        """Return what identifies the vocabulary, for the record."""


@runtime_checkable
class Tokenizer(Protocol):
    """The options of an encoding; what it needs to know it learns from the text."""

    def learn(self, text: str, train: str) -> Encoding:
        """Return the encoding for ``text``, of which ``train`` is the part to learn from."""


@dataclass(frozen=True)
class Characters:
    """One token per character; the vocabulary is the sorted alphabet of the *whole* text.

    So every part can be encoded without loss. All that the test part tells is which characters
    occur in it.
    """

    def learn(self, text: str, train: str) -> "Alphabet":
        """Return the alphabet."""
        return Alphabet("".join(map(chr, np.unique(_codes(text)).tolist())))


@dataclass(frozen=True)
class Alphabet:
    """Sorted characters; a token is the position of one."""

    characters: str

    @property
    def size(self) -> int:
        """The number of characters."""
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Return positions in the alphabet.

        Raises:
            ValueError: a character is not in it.
        """
        alphabet, codes = _codes(self.characters), _codes(text)
        found = np.searchsorted(alphabet, codes).clip(max=len(alphabet) - 1)
        if not np.array_equal(alphabet[found], codes):
            raise ValueError("text has characters that are not in the alphabet")
        return torch.from_numpy(found.astype(np.int32))

    def decode(self, tokens: Tensor) -> str:
        """Return the text."""
        return "".join(self.characters[token] for token in tokens.tolist())

    def describe(self) -> dict[str, Any]:
        """Return the characters themselves."""
        return {"tokens": "characters", "size": self.size, "characters": self.characters}


@dataclass(frozen=True)
class Bytes:
    """One token per byte of the text in UTF-8: 256 tokens for any text, nothing is learnt."""

    size = 256

    def learn(self, text: str, train: str) -> "Bytes":
        """Return itself."""
        return self

    def encode(self, text: str) -> Tensor:
        """Return the bytes."""
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).astype(np.int32))

    def decode(self, tokens: Tensor) -> str:
        """Return the text; bytes that are no UTF-8 (half a character) become U+FFFD."""
        return bytes(tokens.tolist()).decode(errors="replace")

    def describe(self) -> dict[str, Any]:
        """Return what there is to say."""
        return {"tokens": "bytes", "size": self.size}


@dataclass(frozen=True)
class BytePairs:
    """Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) of bytes, as in GPT-2.

    ``vocab_size`` tokens: the 256 bytes and merges learnt from the train part alone, by the package
    ``tokenizers`` (the extra ``pai[language]``). Nothing in it is random. A small text may have
    fewer merges than asked for; then some rows of the model's table stay unused.
    """

    vocab_size: int = 1024

    def __post_init__(self) -> None:
        if self.vocab_size <= 256:
            raise ValueError(f"vocab_size must be above 256, the bytes, got {self.vocab_size}")

    def learn(self, text: str, train: str) -> "LearntPairs":
        """Learn the merges.

        Raises:
            ConfigError: the package ``tokenizers`` is not installed.
        """
        try:
            from tokenizers import Tokenizer as Fast
            from tokenizers import decoders, models, pre_tokenizers, trainers
        except ImportError as error:
            raise ConfigError(
                "dataset.tokenizer: byte-pair encoding needs the package tokenizers: "
                "pip install 'pai[language]'"
            ) from error
        fast = Fast(models.BPE())
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[],
            show_progress=False,
        )
        fast.train_from_iterator(train.splitlines(keepends=True), trainer)
        return LearntPairs(fast.to_str(), self.vocab_size)


@dataclass(frozen=True)
class LearntPairs:
    """A vocabulary of byte pairs, as the JSON text of ``tokenizers``."""

    json: str
    size: int

    def encode(self, text: str) -> Tensor:
        """Return the tokens."""
        return torch.tensor(_fast(self.json).encode(text).ids, dtype=torch.int32)

    def decode(self, tokens: Tensor) -> str:
        """Return the text."""
        text: str = _fast(self.json).decode(tokens.tolist(), skip_special_tokens=False)
        return text

    def describe(self) -> dict[str, Any]:
        """Return a hash of the vocabulary and its merges."""
        learnt = _fast(self.json).get_vocab_size()
        return {
            "tokens": "byte pairs", "size": self.size, "learnt": learnt,
            "sha256": hashlib.sha256(self.json.encode()).hexdigest(),
        }  # fmt: skip


@functools.lru_cache(maxsize=4)
def _fast(json: str) -> Any:
    from tokenizers import Tokenizer as Fast

    return Fast.from_str(json)


def _codes(text: str) -> Any:
    """Return the code points ``[M]`` (uint32)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
