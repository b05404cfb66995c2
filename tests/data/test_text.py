"""Text as parts and sequences: nothing overlaps, nothing is lost."""

import gzip
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import python
from torch import Tensor

from pai.data.text import Text, TextBundle, Tokens
from pai.data.tokens import BytePairs, Bytes, Characters, Encoding, Tokenizer
from pai.errors import ConfigError

SENTENCE = "Größe — the quick brown fox jumps over 12 lazy dogs; π ≈ 3.14.\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{number}: {SENTENCE}" for number in range(40)))
    return path


def bundle(file: Path, **options: Any) -> TextBundle:
    return Text(str(file), **{"context_length": 16, **options}).load()


def numbered(count: int, length: int) -> Tokens:
    """Tokens that are their own positions."""
    return Tokens(torch.arange(count, dtype=torch.int32), length)


def as_bundle(train: Tokens) -> TextBundle:
    return TextBundle(train, train, train, Bytes(), "")


@pytest.mark.parametrize("tokenizer", [Characters(), Bytes(), BytePairs(300)])
@pytest.mark.parametrize("length", [1, 16])
def test_the_parts_are_the_text_cut_in_three(file: Path, tokenizer: Tokenizer, length: int) -> None:
    data = bundle(file, tokenizer=tokenizer, context_length=length, test_fraction=0.2)
    text = file.read_text()
    pieces = [data.encoding.decode(part.tokens) for part in (data.train, data.val, data.test)]
    assert "".join(pieces) == text
    shares = [len(piece) / len(text) for piece in pieces]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=1 / len(text))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 80), length=st.integers(1, 9), size=st.integers(1, 6),
    world_size=st.integers(1, 3),
)  # fmt: skip
def test_every_token_but_the_first_is_evaluated_exactly_once(
    count: int, length: int, size: int, world_size: int
) -> None:
    part = numbered(count, length)
    if part.full < world_size or size < world_size:
        return
    data = as_bundle(part)
    seen: list[int] = []
    for rank in range(world_size):
        batches = data.batches(part, size, rank=rank, world_size=world_size)
        assert len(batches) == len(list(batches))
        for inputs, targets in batches:
            assert torch.equal(inputs + 1, targets)
            assert inputs.shape[1] <= length
            seen += targets.flatten().tolist()
    assert sorted(seen) == list(range(1, count))
    assert len(part) == -(-(count - 1) // length)


@pytest.mark.parametrize("count", [50, 57, 64])
def test_an_epoch_has_sequences_that_do_not_overlap_and_epochs_differ(count: int) -> None:
    data = as_bundle(numbered(count, 7))
    covered: Counter[int] = Counter()
    offsets, sizes = set(), set()
    for epoch in range(200):
        batches = data.training_batches(4, seed=1, epoch=epoch)
        targets = torch.cat([y for _, y in batches])
        values = targets.flatten().tolist()
        assert len(values) == len(set(values))
        assert (targets.diff(dim=1) == 1).all()
        covered.update(values)
        offsets.add(min(values))
        sizes.add(len(targets))
    assert sizes == {(count - 1) // 7 - 1}
    assert sorted(covered) == list(range(1, count))
    assert len(offsets) >= 7  # every phase
    orders = [data.training_batches(4, 1, epoch).order.tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_scoring_takes_so_many_distinct_training_sequences_in_all() -> None:
    data = as_bundle(numbered(101, 10))
    rows = torch.cat([x for x, _ in data.scoring_batches(6, 4, seed=0)])
    assert rows.shape == (6, 10)
    assert len(set(rows.flatten().tolist())) == 60
    other = torch.cat([x for x, _ in data.scoring_batches(6, 4, seed=1)])
    assert not torch.equal(rows, other)
    assert len(torch.cat([x for x, _ in data.warmup_batches(4, 0)]).unique()) == 100
    with pytest.raises(ConfigError, match=r"samples_per_class: 11 .*only 10"):
        data.scoring_batches(11, 4, seed=0)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_what_is_encoded_can_be_decoded(text: str) -> None:
    learners: list[Tokenizer] = [Characters(), Bytes()]
    for learner in learners:
        encoding = learner.learn(text, text[: len(text) // 2])
        tokens = encoding.encode(text)
        assert int(tokens.min()) >= 0 and int(tokens.max()) < encoding.size
        assert encoding.decode(tokens) == text


@pytest.mark.parametrize("text", [SENTENCE, "  two  spaces\r\n\ttabs\x00\n\n", "日本語 🙂 é é"])
def test_byte_pairs_decode_to_the_same_text(text: str) -> None:
    pytest.importorskip("tokenizers")
    encoding = BytePairs(280).learn(text, SENTENCE * 3)
    assert encoding.decode(encoding.encode(text)) == text
    assert len(encoding.encode(SENTENCE)) < len(SENTENCE.encode())  # something was learnt


def test_byte_pairs_are_learnt_from_the_train_part_alone_and_always_the_same() -> None:
    pytest.importorskip("tokenizers")
    learner = BytePairs(300)
    train = SENTENCE * 5
    first: Encoding = learner.learn(train + "zzzz" * 50, train)
    assert first == learner.learn(train, train)
    assert first.describe() != learner.learn(train, train + "zzzz" * 50).describe()


def test_characters_outside_the_alphabet_are_an_error() -> None:
    alphabet = Characters().learn("abd", "")
    assert alphabet.describe()["characters"] == "abd"
    for text in ("c", "e", "A"):
        with pytest.raises(ValueError, match="not in the alphabet"):
            alphabet.encode(text)


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_a_file_that_unpacks_to_more_than_the_memory_is_named(tmp_path: Path, suffix: str) -> None:
    zeros = bytes(2**24)
    part = lzma.compress(zeros, preset=0) if suffix == ".xz" else gzip.compress(zeros, 1)
    packed = tmp_path / f"text.txt{suffix}"
    packed.write_bytes(64 * part)  # a GiB
    script = (
        "import resource; from pai.data.corpus import find_source; "
        "resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)); "
        f"find_source({str(packed)!r}).read()"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == (
        f"pai.errors.ConfigError: dataset.path: {packed} ({packed.stat().st_size:,} bytes) is too "
        f"large, unpacked and as text, for the memory of this process"
    )


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_packed_files_are_unpacked(file: Path, tmp_path: Path, suffix: str) -> None:
    packed = tmp_path / f"text.txt{suffix}"
    content = file.read_bytes()
    packed.write_bytes(lzma.compress(content) if suffix == ".xz" else gzip.compress(content))
    assert bundle(packed).describe() == bundle(file).describe()
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"dataset\.path: .* cannot be read"):
        bundle(packed)


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcd" * 100)
    first = bundle(path).describe()
    path.write_text("abce" * 101)
    assert bundle(path).describe() != first


def test_the_mistakes_of_a_user_are_named(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    with pytest.raises(ConfigError, match=r"dataset\.path: .*text\.txt is not a file"):
        bundle(path)
    path.write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(ConfigError, match=r"no UTF-8 text: byte 3 is 0xe9"):
        bundle(path)
    path.write_text("short " * 10)
    with pytest.raises(ConfigError, match=r"context_length: the validation part has 6 tokens"):
        bundle(path)
    for wrong in ({"context_length": 0}, {"val_fraction": 0.5, "test_fraction": 0.5}):
        with pytest.raises(ValueError, match=r"^(context_length|val_fraction)"):
            Text(**wrong)


def test_the_default_is_the_standard_library() -> None:
    text = Text()
    spec, data = text.check(), text.load()
    assert spec.smallest_class > 1000
    assert spec.vocab_size == data.encoding.size < 200
    assert "def " in data.encoding.decode(data.test.tokens)
    assert text.load() is data  # read once


def test_tensors_are_whole_numbers_on_the_device(file: Path) -> None:
    data = bundle(file).to(torch.device("cpu"))
    pairs: list[tuple[Tensor, Tensor]] = list(data.batches(data.test, 3))
    assert {x.dtype for pair in pairs for x in pair} == {torch.int64}
