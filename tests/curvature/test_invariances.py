import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import CASES, case_named
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.models.resnet import thin_resnet

ESTIMATORS = ["empirical_fisher", "mc_fisher", "exact_ggn", "hutchinson"]


def small_resnet() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = thin_resnet(num_classes=4, in_channels=1, depth=8, width=4)
        x, y = torch.randn(12, 1, 8, 8), torch.randint(0, 4, (12,))
    pai.warm_up_batchnorm(model, [(x, y)])
    return model, x, y


@pytest.mark.parametrize("estimator", ["empirical_fisher", "exact_ggn"])
@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, 11), max_size=5))
def test_float32_result_does_not_depend_on_the_batches(estimator: Any, cuts: set[int]) -> None:
    model, x, y = small_resnet()
    edges = [0, *sorted(cuts), 12]
    batches = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(edges)]
    whole = pai.curvature_diagonal(model, [(x, y)], estimator=estimator)
    split = pai.curvature_diagonal(model, batches, estimator=estimator)
    for name, value in whole.items():
        assert (split[name] - value).abs().max() <= 1e-6 * value.abs().max()


@pytest.mark.parametrize("elements", [1, 50, 1000])
def test_result_does_not_depend_on_the_blocks_of_a_layer(
    monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    model, x, y = small_resnet()
    whole = pai.curvature_diagonal(model, [(x, y)], estimator="empirical_fisher")
    monkeypatch.setattr("pai.curvature.products.CACHE_ELEMENTS", elements)
    monkeypatch.setattr("pai.curvature.products._SMALL", 0)
    blocked = pai.curvature_diagonal(model, [(x, y)], estimator="empirical_fisher")
    for name, value in whole.items():
        assert (blocked[name] - value).abs().max() <= 1e-6 * value.abs().max()


@pytest.mark.parametrize("estimator", ["empirical_fisher", "exact_ggn"])
def test_weights_in_channels_last_give_the_same_result(estimator: Any) -> None:
    model, x, y = small_resnet()
    plain = pai.curvature_diagonal(model, [(x, y)], estimator=estimator)
    model.to(memory_format=torch.channels_last)
    other = pai.curvature_diagonal(model, [(x, y)], estimator=estimator)
    for name, value in plain.items():
        assert (other[name] - value).abs().max() <= 1e-6 * value.abs().max()


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    grads = [p.grad for p in model.parameters()]
    requires = [p.requires_grad for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    yield
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert flags == [module.training for module in model.modules()]
    assert all(a is b for a, b in zip(grads, [p.grad for p in model.parameters()], strict=True))
    assert requires == [p.requires_grad for p in model.parameters()]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def awkward_resnet() -> tuple[nn.Module, Tensor, Tensor]:
    """Train mode, one frozen parameter, gradients in place."""
    model, x, y = small_resnet()
    model.train()
    model.get_submodule("bn1").eval()
    next(model.parameters()).requires_grad_(False)
    for parameter in list(model.parameters())[1:]:
        parameter.grad = torch.ones_like(parameter)
    return model, x, y


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_model_is_bit_identical_afterwards(estimator: Any) -> None:
    model, x, y = awkward_resnet()
    with unchanged(model):
        pai.curvature_diagonal(model, [(x, y)], estimator=estimator)


@pytest.mark.parametrize("estimator", ["empirical_fisher", "hutchinson"])
def test_model_is_bit_identical_when_the_loss_raises(estimator: Any) -> None:
    model, x, y = awkward_resnet()
    calls = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise ArithmeticError("no loss today")
        return F.cross_entropy(outputs, targets)

    with unchanged(model), pytest.raises(ArithmeticError):
        pai.curvature_diagonal(
            model, [(x[:6], y[:6]), (x[6:], y[6:])] * 2, estimator=estimator, loss_fn=loss
        )


@pytest.mark.parametrize("fails", [False, True])
def test_attention_layers_are_closed_again(*, fails: bool) -> None:
    model, x, y = case_named("attention").problem()
    attention = model.get_submodule("attention")

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        assert "forward" in vars(attention) or not fails
        if fails:
            raise ArithmeticError("no loss today")
        return F.cross_entropy(outputs, targets)

    def score() -> None:
        pai.curvature_diagonal(model, [(x, y)], estimator="empirical_fisher", loss_fn=loss)

    with unchanged(model):
        if fails:
            with pytest.raises(ArithmeticError):
                score()
        else:
            score()
    assert "forward" not in vars(attention)


def test_frozen_parameters_and_train_mode_do_not_change_the_result() -> None:
    model, x, y = awkward_resnet()
    plain, _, _ = small_resnet()
    for estimator in ("empirical_fisher", "exact_ggn"):
        a = pai.curvature_diagonal(model, [(x, y)], estimator=estimator)
        b = pai.curvature_diagonal(plain, [(x, y)], estimator=estimator)
        assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_custom_loss_is_used_by_the_empirical_fisher() -> None:
    model = nn.Linear(3, 2, bias=False).double()
    x, y = torch.randn(4, 3).double(), torch.randn(4, 2).double()

    def mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1).mean()

    result = pai.curvature_diagonal(
        model, [(x, y)], estimator="empirical_fisher", loss_fn=mean_square,
        parameters={"weight": model.get_parameter("weight")},
    )  # fmt: skip
    residual = 2 * (model(x) - y)
    truth = (residual[:, :, None] * x[:, None, :]).square().mean(0)
    torch.testing.assert_close(result["weight"], truth.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", ["mc_fisher", "exact_ggn"])
def test_estimators_that_assume_cross_entropy_refuse_other_losses(estimator: Any) -> None:
    model, x, y = CASES[0].problem()
    with pytest.raises(ValueError, match="assumes cross-entropy"):
        pai.curvature_diagonal(model, [(x, y)], estimator=estimator, loss_fn=F.multi_margin_loss)


@pytest.mark.parametrize("estimator", ["mc_fisher", "hutchinson"])
def test_generator_makes_stochastic_estimators_reproducible(estimator: Any) -> None:
    model, x, y = CASES[0].problem()

    def draw(seed: int) -> Tensor:
        stream = torch.Generator().manual_seed(seed)
        named = pai.curvature_diagonal(model, [(x, y)], estimator=estimator, generator=stream)
        return torch.cat([value.flatten() for value in named.values()])

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_input_changed_in_place_after_the_layer_used_it_is_an_error_not_a_wrong_number() -> None:
    class Spoiler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            out = self.first(x)
            x.mul_(2)
            return self.head(self.second(out) + x)

    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]
    with pytest.raises(RuntimeError, match=r"first\.weight.*in place"):
        pai.curvature_diagonal(Spoiler(), batches, estimator="empirical_fisher")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "exact_gnn"}, "did you mean 'exact_ggn'"),
        ({"estimator": "exact_ggn", "num_probes": 3}, "num_probes"),
        ({"estimator": "hutchinson", "num_probes": 0}, "num_probes must be at least 1"),
        ({"estimator": "hutchinson", "batch_size": 0}, "batch_size must be at least 1"),
        ({"estimator": "hutchinson", "matrix": "ggn"}, "matrix must be 'hessian' or"),
        ({"estimator": "mc_fisher", "num_draws": 0}, "num_draws must be at least 1"),
        ({"estimator": "empirical_fisher", "temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    model, x, y = CASES[0].problem()
    with pytest.raises(ValueError, match=message):
        pai.curvature_diagonal(model, [(x, y)], **arguments)


def test_no_batches_is_an_error() -> None:
    model, _, _ = CASES[0].problem()
    for estimator in ESTIMATORS:
        with pytest.raises(ValueError, match="batches is empty"):
            pai.curvature_diagonal(model, [], estimator=estimator)  # type: ignore[arg-type]
