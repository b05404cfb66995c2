"""SynFlow has one source of flow: the input of ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pai


class Positions(nn.Module):
    """Something is added to, or multiplies, the features of four positions."""

    def __init__(
        self, held: nn.Module, rows: Callable[[nn.Module], Tensor], *, scales: bool = False
    ) -> None:
        super().__init__()
        self.held, self.rows, self.scales = held, rows, scales
        self.embed, self.mix = nn.Linear(3, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.head = nn.Linear(5, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(self.held)
        x = self.embed(x) * rows if self.scales else self.embed(x) + rows
        return self.head(F.relu(self.mix(x)).mean(1))


def of_an_embedding(held: nn.Module) -> Tensor:
    rows: Tensor = held(torch.arange(4))
    return rows


def of_a_list(held: nn.Module) -> Tensor:
    assert isinstance(held, nn.ParameterList)
    return held[0]


def of_a_dict(held: nn.Module) -> Tensor:
    assert isinstance(held, nn.ParameterDict)
    rows: Tensor = held["rows"]
    return rows


def of_bags(held: nn.Module) -> Tensor:
    rows: Tensor = held(torch.arange(8).view(4, 2))
    return rows


def rows() -> nn.Parameter:
    return nn.Parameter(torch.rand(4, 5) + 1)


HOLDERS = {
    "embedding": (lambda: nn.Embedding(4, 5), of_an_embedding),
    "bag": (lambda: nn.EmbeddingBag(8, 5), of_bags),
    "list": (lambda: nn.ParameterList([rows()]), of_a_list),
    "dict": (lambda: nn.ParameterDict({"rows": rows()}), of_a_dict),
}


def flows(model: nn.Module) -> list[float]:
    parameters = {f"{n}.weight": model.get_parameter(f"{n}.weight") for n in ("embed", "mix")}
    scores = pai.load_scorer("synflow")(
        model, [(torch.zeros(1, 4, 3), torch.zeros(1))], parameters=parameters
    )
    return [float(value.sum()) for value in scores.values()]


@pytest.mark.parametrize("holder", HOLDERS)
def test_positions_are_no_source_of_flow_wherever_they_are_held(holder: str) -> None:
    torch.manual_seed(0)
    build, read = HOLDERS[holder]
    model = Positions(build(), read).double()
    embed, mix, head = (p.abs() for p in list(model.parameters())[-3:])
    assert flows(model) == pytest.approx([(head @ mix @ embed).sum().item()] * 2)


@pytest.mark.parametrize("holder", HOLDERS)
def test_scales_stay_wherever_they_are_held(holder: str) -> None:
    torch.manual_seed(0)
    build, read = HOLDERS[holder]
    model = Positions(build(), read, scales=True).double()
    embed, mix, head = (p.abs() for p in list(model.parameters())[-3:])
    scale = next(model.held.parameters()).abs()
    if holder == "bag":
        scale = scale.view(4, 2, 5).mean(1)
    truth = (head @ mix @ torch.diag(scale.mean(0)) @ embed).sum().item()
    assert flows(model) == pytest.approx([truth] * 2)
