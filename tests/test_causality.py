"""A language model that sees what it is to predict is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import config
from torch import Tensor, nn

from pai.causality import sees_the_future
from pai.errors import ConfigError
from pai.models.gpt import gpt
from pai.plan import prepare
from pai.trust import TRUST_VARIABLE


class Mixing(nn.Module):
    """Embeds tokens and mixes positions by a fixed matrix ``[L, L]``."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.embedding, self.matrix = nn.Embedding(7, 7), matrix

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.matrix @ self.embedding(tokens)
        return mixed.transpose(1, 2)


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_a_model_that_looks_back_only_passes(length: int) -> None:
    back = Mixing(torch.ones(length, length).tril())
    assert not sees_the_future(back, 7, length)
    network = gpt(vocab_size=7, context_length=length, embed_dim=8, depth=2, num_heads=2)
    assert not sees_the_future(network.eval(), 7, length)


@pytest.mark.parametrize(("length", "row", "column"), [(2, 0, 1), (5, 0, 4), (5, 2, 3), (8, 1, 7)])
@pytest.mark.parametrize("weight", [1.0, 1e-3])
def test_one_look_ahead_over_the_middle_is_seen(
    length: int, row: int, column: int, weight: float
) -> None:
    matrix = torch.ones(length, length).tril()
    matrix[row, column] = weight
    assert sees_the_future(Mixing(matrix), 7, length)


def test_whoever_looks_ahead_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "users_own_parts")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question " * 20)
    whole: dict[str, Any] = config(
        "dataset=text", f"dataset.path={tmp_path / 'text.txt'}", "dataset.context_length=6",
        "model=gpt", "scoring.samples_per_class=2",
    )  # fmt: skip
    prepare(whole)
    whole["model"] = {"_target_": "users_own_parts.encoder", "_partial_": True}
    with pytest.raises(ConfigError) as caught:
        prepare(whole)
    assert str(caught.value) == (
        "model: its predictions depend on later tokens, which are what it is to predict; use one "
        "that looks back only (model=gpt does)"
    )


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("vocab_size", [2, 3])
def test_how_large_logits_are_and_how_many_tokens_there_are_makes_no_difference(
    scale: float, vocab_size: int
) -> None:
    matrix = torch.ones(4, 4).tril()
    back, ahead = Mixing(scale * matrix), Mixing(scale * (matrix + 1e-3))
    assert not sees_the_future(back, vocab_size, 4)
    assert sees_the_future(ahead, vocab_size, 4)


def test_logits_that_are_all_the_same_tell_nothing() -> None:
    assert not sees_the_future(Mixing(torch.zeros(4, 4)), 7, 4)
