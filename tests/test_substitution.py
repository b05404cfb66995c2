"""A pass with other weights leaves the model's own in every place where they were."""

from typing import Any

import pytest
import torch
from test_state_of_odd_models import state
from torch import Tensor, nn

import pai
from pai.masking.effective import effective_kept
from pai.substitution import call_with


def named_twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.BatchNorm1d(4), nn.Linear(4, 3))


def block_named_twice() -> nn.Module:
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    return nn.Sequential(block, block, nn.Linear(4, 3))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return model


MODELS = {"named twice": named_twice, "block named twice": block_named_twice, "tied": tied}
BATCH = torch.linspace(-1, 1, 24).view(6, 4), torch.arange(6) % 3


@pytest.mark.parametrize("build", [*MODELS.values(), lambda: nn.Linear(4, 3)])
def test_every_use_of_a_weight_has_the_other_and_its_own_again(build: Any) -> None:
    torch.manual_seed(0)
    model = build().eval()
    inputs, before = BATCH[0], state(model)
    doubled = {key: 2 * value for key, value in dict(model.named_parameters()).items()}
    found = call_with(model, doubled, inputs)
    assert {key: value[0] for key, value in state(model).items()} == {
        key: value[0] for key, value in before.items()
    }
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(found, model(inputs))


def test_a_later_name_of_a_tensor_is_as_good_as_the_first() -> None:
    model = named_twice().eval()
    first, later = ({f"{n}.weight": torch.zeros(4, 4)} for n in (0, 2))
    assert torch.equal(call_with(model, first, BATCH[0]), call_with(model, later, BATCH[0]))
    with pytest.raises(ValueError, match=r"no parameter or buffer '1\.weight'"):
        call_with(model, {"1.weight": torch.zeros(4, 4)}, BATCH[0])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "scorer",
    ["synflow", "px", "ntk_sap", "prospr", "grasp", "snip", "gts",
     ("hd", {"matrix": "gauss_newton"})],
)  # fmt: skip
def test_scoring_leaves_the_model_and_its_outputs_as_they_were(name: str, scorer: Any) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    before, outputs = state(model), model(BATCH[0])
    scorer, options = (scorer, {}) if isinstance(scorer, str) else scorer
    mask = pai.find_mask(
        model, [BATCH], pai.load_scorer(scorer, **options), sparsity=0.5,
        schedule=pai.load_schedule("exponential", rounds=2), generator=torch.Generator(),
    )  # fmt: skip
    effective_kept(model, mask, BATCH[0])
    for key, (tensor, value) in state(model).items():
        assert tensor is before[key][0] and torch.equal(value, before[key][1])
    assert torch.equal(model(BATCH[0]), outputs)


def test_a_weight_of_two_places_has_one_score() -> None:
    torch.manual_seed(0)
    shared = named_twice().eval().double()

    class Written(nn.Module):
        """The same network, its layer called twice under one name."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.head = shared[0], shared[3], shared[4]  # type: ignore[index]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.layer(torch.relu(self.layer(x)))))

    batches = [(BATCH[0].double(), BATCH[1])]
    for scorer in ("synflow", "gts", "fts"):
        ours, theirs = (
            pai.load_scorer(scorer)(model, batches)[
                "0.weight" if model is shared else "layer.weight"
            ]
            for model in (shared, Written())
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
