import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from cases import CASES, SAMPLES, Case, case_named
from reference import flatten, ggn, hessian, per_sample_gradients
from torch import Tensor, nn

import pai

TEMPERATURES = [1.0, 3.0]
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
at_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)


def everything(model: nn.Module) -> dict[str, nn.Parameter]:
    return pai.prunable_parameters(model, include_classifier=True)


def diagonal(
    model: nn.Module, batches: Any, parameters: Mapping[str, nn.Parameter], **options: Any
) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # slow paths are announced; tested below
        named = pai.curvature_diagonal(model, batches, parameters=parameters, **options)
    assert list(named) == list(parameters)
    assert all(named[name].shape == p.shape for name, p in parameters.items())
    return flatten(named)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@by_name
@at_temperature
def test_empirical_fisher_is_the_mean_of_squared_per_sample_gradients(
    case: Case, temperature: float
) -> None:
    model, x, y = case.problem()
    parameters = everything(model)
    truth = per_sample_gradients(model, parameters, x, y, temperature).square().mean(0)
    options = {"estimator": "empirical_fisher", "temperature": temperature}
    assert_equal(diagonal(model, [(x, y)], parameters, **options), truth)
    split = list(zip(x.split(2), y.split(2), strict=True))
    assert_equal(diagonal(model, split, parameters, **options), truth)


@by_name
@at_temperature
def test_exact_ggn_is_the_diagonal_of_the_dense_ggn(case: Case, temperature: float) -> None:
    model, x, y = case.problem()
    parameters = everything(model)
    truth = ggn(model, parameters, x, temperature).diag()
    options = {"estimator": "exact_ggn", "temperature": temperature}
    assert_equal(diagonal(model, [(x, y)], parameters, **options), truth)
    split = list(zip(x.split(2), y.split(2), strict=True))
    assert_equal(diagonal(model, split, parameters, **options), truth)


@by_name
def test_ggn_and_hessian_have_the_same_diagonal_exactly_where_the_net_is_piecewise_linear(
    case: Case,
) -> None:
    model, x, y = case.problem()
    parameters = everything(model)
    estimate = diagonal(model, [(x, y)], parameters, estimator="exact_ggn")
    truth = hessian(model, parameters, x, y, 1.0).diag()
    gap = (estimate - truth).abs().max() / truth.abs().max()
    linear = case.piecewise_linear or case.name == "standardised"  # linear in the weights as well
    assert gap < 1e-12 if linear else gap > 1e-4


@by_name
def test_monte_carlo_fisher_converges_to_the_ggn_at_the_rate_of_its_draws(case: Case) -> None:
    model, x, y = case.problem()
    parameters = everything(model)
    truth = ggn(model, parameters, x, 1.0).diag()
    stream = torch.Generator().manual_seed(1)

    def error(draws: int, repeats: int) -> float:
        options = {"estimator": "mc_fisher", "num_draws": draws, "generator": stream}
        squares = [
            (diagonal(model, [(x, y)], parameters, **options) - truth).square().sum()
            for _ in range(repeats)
        ]
        return float((torch.stack(squares).mean() / truth.square().sum()).sqrt())

    few, many = error(draws=2, repeats=20), error(draws=200, repeats=2)
    assert many < 0.15
    assert 3 < few / many < 33  # sqrt(100) on average


@by_name
@at_temperature
def test_hutchinson_is_unbiased_for_the_hessian_diagonal(case: Case, temperature: float) -> None:
    """With independent probes the mean must lie within six standard errors of the truth."""
    model, x, y = case.problem()
    parameters = everything(model)
    matrix = hessian(model, parameters, x, y, temperature)
    probes = 60
    estimate = diagonal(
        model, [(x, y)], parameters, estimator="hutchinson", num_probes=probes,
        temperature=temperature, generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    variance = matrix.square().sum(1) - matrix.diag().square()
    slack = 1e-12 * matrix.abs().max()
    assert ((estimate - matrix.diag()).abs() <= 6 * (variance / probes).sqrt() + slack).all()
    spread = (estimate - matrix.diag()).square().mean() / (variance / probes).mean()
    assert 0.2 < spread < 5  # the noise is as large as the theory says: probes are independent


@by_name
def test_hutchinson_on_gauss_newton_is_unbiased_for_the_ggn_diagonal(case: Case) -> None:
    model, x, y = case.problem()
    parameters = everything(model)
    matrix = ggn(model, parameters, x, 2.0)
    runs, probes = 20, 3
    stream = torch.Generator().manual_seed(2)
    found = torch.stack([
        diagonal(
            model, [(x, y)], parameters, estimator="hutchinson", num_probes=probes,
            temperature=2.0, matrix="gauss_newton", generator=stream,
        )
        for _ in range(runs)
    ])  # fmt: skip
    variance = (matrix.square().sum(1) - matrix.diag().square()) / probes
    slack = 1e-12 * matrix.abs().max()
    off = found - matrix.diag()
    assert (off.mean(0).abs() <= 6 * (variance / runs).sqrt() + slack).all()
    assert 0.2 < off.square().mean() / variance.mean() < 5


def test_hutchinson_on_gauss_newton_takes_any_loss() -> None:
    model, x, _ = case_named("mlp_relu").problem()
    parameters = everything(model)
    y = torch.randn(len(x), 3, dtype=x.dtype)
    named = pai.curvature_diagonal(
        model, [(x, y)], estimator="hutchinson", matrix="gauss_newton", num_probes=3000,
        loss_fn=nn.functional.mse_loss, parameters=parameters,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    rows = []
    for n in range(len(x)):
        for c in range(3):
            gradient = torch.autograd.grad(model(x[n : n + 1])[0, c], list(parameters.values()))
            rows.append(torch.cat([g.flatten() for g in gradient]))
    truth = torch.stack(rows).square().sum(0) * 2 / y.numel()
    assert_equal(flatten(named), truth, tolerance=0.1)


def test_hutchinson_with_batch_size_one_averages_the_samples_and_has_less_noise() -> None:
    case = case_named("mlp_tanh")
    model, x, y = case.problem()
    parameters = everything(model)
    truth = hessian(model, parameters, x, y, 1.0).diag()
    variance = torch.zeros_like(truth)
    for n in range(SAMPLES):
        single = hessian(model, parameters, x[n : n + 1], y[n : n + 1], 1.0)
        variance += (single.square().sum(1) - single.diag().square()) / SAMPLES**2
    estimate = diagonal(
        model, [(x, y)], parameters, estimator="hutchinson", num_probes=200, batch_size=1,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    spread = (estimate - truth).square().mean() / (variance / 200).mean()
    assert 0.5 < spread < 2


def test_hutchinson_weights_batches_of_unequal_size_by_their_samples() -> None:
    model = nn.Linear(1, 2, bias=False).double()
    x, y = torch.tensor([[1.0], [2.0], [3.0]]).double(), torch.tensor([0, 1, 0])
    parameters = {"weight": model.get_parameter("weight")}
    split = [(x[:2], y[:2]), (x[2:], y[2:])]
    estimate = diagonal(
        model, split, parameters, estimator="hutchinson", num_probes=4_000,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    assert_equal(estimate, hessian(model, parameters, x, y, 1.0).diag(), tolerance=0.05)


@by_name
def test_parameters_without_a_rule_are_announced_and_no_others(case: Case) -> None:
    model, x, y = case.problem()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pai.curvature_diagonal(
            model, [(x, y)], estimator="empirical_fisher", parameters=everything(model)
        )
    said = [str(w.message) for w in caught if "per-sample rule" in str(w.message)]
    expected = f"no fast per-sample rule for {', '.join(case.slow)}: one backward pass per sample"
    assert [text.startswith(expected) for text in said] == ([True] if case.slow else [])


def test_an_embedding_s_padding_has_no_gradient_and_needs_no_slow_path() -> None:
    case = case_named("embedding")
    model, x, y = case.problem()
    parameters = {"embed.weight": model.get_parameter("embed.weight")}
    assert model.get_submodule("embed").padding_idx in x
    truth = per_sample_gradients(model, parameters, x, y, 1.0).square().mean(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "no fast per-sample rule")
        found = pai.curvature_diagonal(
            model, [(x, y)], estimator="empirical_fisher", parameters=parameters
        )
    assert_equal(flatten(found), truth)
    assert found["embed.weight"].dtype == torch.float64
    assert not found["embed.weight"][1].any() and found["embed.weight"][[0, 2]].all()


class PartlyUsed(nn.Module):
    """A layer that no output depends on beside one that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_what_does_not_count_has_no_curvature(matrix: str) -> None:
    model, x, y = PartlyUsed().double(), torch.randn(5, 3).double(), torch.randint(0, 4, (5,))
    options: Any = {"estimator": "hutchinson", "num_probes": 2, "matrix": matrix}
    both = dict(model.named_parameters())
    unused = {"unused.weight": both["unused.weight"]}
    assert not diagonal(model, [(x, y)], unused, **options).any()
    found = pai.curvature_diagonal(model, [(x, y)], parameters=both, **options)
    assert found["used.weight"].any() and not found["unused.weight"].any()

    def linear(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.gather(1, targets[:, None]).mean()

    assert not diagonal(model, [(x, y)], both, loss_fn=linear, **options).any()


@pytest.mark.parametrize("name", ["attention", "attention_sizes_biases"])
def test_layers_that_are_not_scored_change_nothing(name: str) -> None:
    model, x, y = case_named(name).problem()
    parameters = everything(model)
    options: Any = {"estimator": "empirical_fisher"}
    truth = pai.curvature_diagonal(model, [(x, y)], parameters=parameters, **options)
    for one in parameters:
        alone = {one: parameters[one]}
        assert_equal(diagonal(model, [(x, y)], alone, **options), truth[one].flatten())
