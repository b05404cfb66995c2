import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.errors import RunError
from pai.models.resnet import thin_resnet

every_scorer = pytest.mark.parametrize("name", pai.available_scorers())


def problem() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = thin_resnet(num_classes=3, in_channels=1, depth=8, width=4)
        x, y = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    model.train()
    for parameter in list(model.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    list(model.parameters())[3].requires_grad_(False)
    return model, [(x[:4], y[:4]), (x[4:], y[4:])]


def state(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [id(p.grad) for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    ]


@every_scorer
def test_scores_fit_the_prunable_parameters_and_leave_the_model_bit_identical(name: str) -> None:
    model, batches = problem()
    before, values = state(model), copy.deepcopy(model.state_dict())
    scores = pai.load_scorer(name)(model, batches, generator=torch.Generator().manual_seed(0))
    parameters = pai.prunable_parameters(model)
    assert {n: s.shape for n, s in scores.items()} == {n: p.shape for n, p in parameters.items()}
    assert not any(value.requires_grad for value in scores.values())
    assert state(model) == before
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


@every_scorer
def test_global_random_state_is_untouched_when_a_generator_is_given(name: str) -> None:
    model, batches = problem()
    before = torch.get_rng_state()
    scorer = pai.load_scorer(name)
    first = scorer(model, batches, generator=torch.Generator().manual_seed(5))
    second = scorer(model, batches, generator=torch.Generator().manual_seed(5))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_scorer
def test_scores_can_be_asked_for_chosen_parameters(name: str) -> None:
    model, batches = problem()
    chosen = {"fc.weight": model.get_parameter("fc.weight")}
    assert list(pai.load_scorer(name)(model, batches, parameters=chosen)) == ["fc.weight"]


@pytest.mark.parametrize("name", ["snip", "fts", "hp", "grasp", "prospr"])
def test_a_loss_of_the_users_is_used(name: str) -> None:
    model, batches = problem()
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(targets))
        return F.cross_entropy(outputs, targets)

    with_loss = pai.load_scorer(name)(
        model, batches, loss_fn=loss, generator=torch.Generator().manual_seed(0)
    )
    default = pai.load_scorer(name)(model, batches, generator=torch.Generator().manual_seed(0))
    assert seen
    assert all(torch.equal(with_loss[key], default[key]) for key in default)


@pytest.mark.parametrize("name", ["snip", "fd", "hts", "grasp", "prospr", "px"])
def test_a_score_that_is_not_a_number_is_an_error_that_names_the_layer(name: str) -> None:
    model, batches = problem()
    batches[1][0][0] = float("nan")
    with pytest.raises(RunError, match=r"scores of 'conv1\.weight' are NaN or infinite"):
        pai.load_scorer(name)(model, batches)


@pytest.mark.parametrize(
    "name",
    [
        "snip", "fts", "gp", "mp", "hp", "grasp", "synflow", "force", "ntk_sap", "prospr", "px",
        "phew",
    ],
)  # fmt: skip
def test_no_batch_is_an_error(name: str) -> None:
    model, _ = problem()
    with pytest.raises(ValueError, match="batches is empty"):
        pai.load_scorer(name)(model, [])


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in pai.available_scorers()),
     ("snip", {"train_batchnorm": True}), ("grasp", {"train_batchnorm": True})],
)  # fmt: skip
def test_batches_without_samples_change_nothing(name: str, options: dict[str, Any]) -> None:
    model, batches = problem()
    (x, y), last = batches
    empty = x[:0], y[:0]
    scorer = pai.load_scorer(name, **options)

    def scores(batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return dict(scorer(model, batches, generator=torch.Generator().manual_seed(0)))

    expected, found = scores(batches), scores([empty, (x, y), empty, last, empty])
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    parameters = pai.prunable_parameters(model)
    assert scorer.describe(model, [empty, last], parameters) == scorer.describe(
        model, [last], parameters
    )


def test_unknown_names_and_options_are_explained() -> None:
    with pytest.raises(ValueError, match="did you mean 'hts'"):
        pai.load_scorer("htss")
    with pytest.raises(ValueError, match="did you mean 'num_probes'"):
        pai.load_scorer("hts", num_prbes=3)
    with pytest.raises(ValueError, match="num_probes"):
        pai.load_scorer("hts", num_probes="many")
