"""Networks that compute parts of themselves again in the backward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pai

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 3
OTHER_WEIGHTS = ["synflow", "px", "ntk_sap", "prospr"]


class Checkpointed(nn.Module):
    def __init__(self, *, again: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.again = again
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        again: Any = checkpoint
        x = again(self.block, x, use_reentrant=False) if self.again else self.block(x)
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize("name", OTHER_WEIGHTS)
def test_scores_of_other_weights_are_refused_instead_of_wrong(name: str) -> None:
    with pytest.raises(RuntimeError, match="turn checkpointing off"):
        pai.load_scorer(name)(Checkpointed(), [(X, Y)])


@pytest.mark.parametrize("name", [n for n in pai.available_scorers() if n not in OTHER_WEIGHTS])
def test_all_others_are_the_same(name: str) -> None:
    found, expected = (
        pai.load_scorer(name)(
            Checkpointed(again=again), [(X, Y)], generator=torch.Generator().manual_seed(0)
        )
        for again in (True, False)
    )
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-14)
