import warnings
from typing import Any

import pytest
import torch
from cases import CASES, Case, case_named
from reference import Named, flatten, ggn, hessian, per_sample_gradients, unflatten
from torch import Tensor, nn
from torch.nn import functional as F

import pai

SOME = [c for c in CASES if c.name in ("mlp_tanh", "conv_groups", "residual", "shared")]
by_name = pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)

FORMULAS = {
    "grad_norm": lambda w, g, h: g.abs(),
    "snip": lambda w, g, h: (w * g).abs(),
    "d": lambda w, g, h: h,
    "p": lambda w, g, h: w**2 * h / 2,
    "ts": lambda w, g, h: (w * g + w**2 * h / 2).abs(),
}


def score(name: str, model: nn.Module, batches: Any, **options: Any) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        named = pai.load_scorer(name, **options)(model, batches, generator=stream)
    assert list(named) == list(pai.prunable_parameters(model))
    return flatten(named)


def halves(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(2), y.split(2), strict=True))


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max()


@by_name
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["grad_norm", "snip", "fd", "fp", "fts", "gd", "gp", "gts"])
def test_deterministic_factor_scorers(case: Case, temperature: float, name: str) -> None:
    model, x, y = case.problem()
    parameters = pai.prunable_parameters(model)
    rows = per_sample_gradients(model, parameters, x, y, temperature)
    h = rows.square().mean(0)
    if name.startswith("g") and name != "grad_norm":
        h = ggn(model, parameters, x, temperature).diag()
    formula = FORMULAS[name if name in FORMULAS else name[1:]]
    truth = formula(flatten(parameters).detach(), rows.mean(0), h)
    assert_equal(score(name, model, [(x, y)], temperature=temperature), truth)
    assert_equal(score(name, model, halves(x, y), temperature=temperature), truth)


@by_name
@pytest.mark.parametrize("family", ["h", "m"])
def test_stochastic_families_are_the_formulas_of_one_estimate(case: Case, family: str) -> None:
    model, x, y = case.problem()
    w = flatten(pai.prunable_parameters(model)).detach()
    g = per_sample_gradients(model, pai.prunable_parameters(model), x, y, 2.0).mean(0)
    h = score(f"{family}d", model, [(x, y)], temperature=2.0)
    for suffix in ("p", "ts"):
        truth = FORMULAS[suffix](w, g, h)
        assert_equal(score(f"{family}{suffix}", model, [(x, y)], temperature=2.0), truth)


def test_the_settings_of_the_paper_are_the_defaults_of_the_hutchinson_family() -> None:
    for name in ("hd", "hp", "hts"):
        estimator = pai.load_scorer(name).estimator
        assert (estimator.num_probes, estimator.temperature, estimator.batch_size) == (10, 200, 1)


@by_name
def test_grasp_keeps_the_largest_weight_times_hessian_gradient_product(case: Case) -> None:
    model, x, y = case.problem()
    parameters = pai.prunable_parameters(model)
    temperature = 2.0
    g = per_sample_gradients(model, parameters, x, y, temperature).mean(0)
    product = hessian(model, parameters, x, y, temperature) @ g
    truth = flatten(parameters).detach() * product
    assert_equal(score("grasp", model, [(x, y)], temperature=temperature), truth)
    assert_equal(score("grasp", model, halves(x, y), temperature=temperature), truth)


def test_grasp_of_a_loss_with_a_constant_gradient_is_zero() -> None:
    for model in (nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))):
        scores = pai.load_scorer("grasp")(
            model, [(torch.ones(4, 3), torch.zeros(4))], parameters=dict(model.named_parameters()),
            loss_fn=lambda outputs, targets: outputs.mean(),
        )  # fmt: skip
        zero = not any(bool(value.any()) for value in scores.values())
        assert zero is isinstance(model, nn.Linear)  # linear in one layer, not in two


def test_grasp_prefers_weights_whose_removal_hurts_the_gradient_flow() -> None:
    """Removing the best-scored weight must lower g.g more than removing the worst-scored one."""
    model, x, y = case_named("mlp_tanh").problem()
    parameters = pai.prunable_parameters(model)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(0.1)  # small weights: the first-order statement holds

    def flow() -> Tensor:
        return per_sample_gradients(model, parameters, x, y, 1.0).mean(0).square().sum()

    scores = score("grasp", model, [(x, y)], temperature=1.0)
    changes = []
    for position in (scores.argmax(), scores.argmin()):
        vector = flatten(parameters).detach().clone()
        vector[position] = 0
        saved = {name: p.detach().clone() for name, p in parameters.items()}
        before = flow()
        with torch.no_grad():
            for name, value in unflatten(vector, parameters).items():
                parameters[name].copy_(value)
        changes.append(float(flow() - before))
        with torch.no_grad():
            for name, value in saved.items():
                parameters[name].copy_(value)
    assert changes[0] < changes[1]
    # to first order, removing weight w changes g.g by -2 w (H g)
    assert changes[0] == pytest.approx(-2 * float(scores.max()), rel=0.2)


def test_synflow_equals_products_over_paths_computed_by_hand() -> None:
    """For two layers R = sum_oji |v_oj| |u_ji|, so u_ji scores |u_ji| sum_o |v_oj|."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    u, v = (model.get_parameter(f"{i}.weight").detach().double() for i in (0, 2))
    batches = [(torch.full((2, 3), -7.0), torch.tensor([0, 1]))]
    scores = pai.load_scorer("synflow")(
        model, batches, parameters=pai.prunable_parameters(model, include_classifier=True)
    )
    torch.testing.assert_close(scores["0.weight"], u.abs() * v.abs().sum(0)[:, None])
    torch.testing.assert_close(scores["2.weight"], v.abs() * u.abs().sum(1)[None, :])
    conserved = [float(value.sum()) for value in scores.values()]
    assert conserved[0] == pytest.approx(conserved[1])  # flow through every layer is the same


def test_synflow_takes_batchnorm_as_a_positive_scaling_even_after_a_warmup() -> None:
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), norm, nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-2.0, 1, 1, 1]))
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.fill_(1e3)  # would silence every unit
        norm.running_var.fill_(4.0)
    batches = [(torch.zeros(2, 3), torch.tensor([0, 1]))]
    u, v = (model.get_parameter(f"{i}.weight").detach().double() for i in (0, 3))
    scale = norm.weight.detach().double().abs() / (4.0 + norm.eps) ** 0.5
    scores = pai.load_scorer("synflow")(model, batches)
    truth = u.abs() * (v.abs().sum(0) * scale)[:, None]
    torch.testing.assert_close(scores["0.weight"], truth)


class Own(nn.Module):
    """Parameters of its own: added, put beside, written into memory, made of others; scales."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.token, self.positions = (nn.Parameter(torch.rand(1, n, 4) + 1) for n in (1, 4))
        self.shift, self.memory = nn.Parameter(torch.rand(4) + 1), nn.Parameter(torch.rand(4) + 1)
        self.scale, self.power = nn.Parameter(torch.rand(4) + 1), nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], dim=1)
        x += 0.5 * self.positions[:, : x.shape[1]]
        x = F.linear(torch.relu(x) * self.scale / self.scale.sum(), self.mix.weight, self.shift)
        longer = x.new_zeros(len(x), 5, 4)
        longer[:, 0] = self.memory
        longer[:, 1:] = x**self.power
        return self.head(longer).sum(1)


def flows(model: nn.Module, x: Tensor, names: list[str]) -> list[float]:
    parameters = {name: model.get_parameter(name) for name in names}
    scores = pai.load_scorer("synflow")(model, [(x, torch.zeros(1))], parameters=parameters)
    return [float(value.sum()) for value in scores.values()]


def test_synflow_conserves_the_flow_whatever_is_added() -> None:
    torch.manual_seed(0)
    model = Own()
    embed, mix, head = (model.get_parameter(f"{n}.weight").double().abs() for n in
                        ("embed", "mix", "head"))  # fmt: skip
    scale = model.scale.double() / model.scale.double().sum()
    flow = 3 * (head @ mix @ torch.diag(scale) @ embed).sum().item()  # three positions
    names = ["embed.weight", "mix.weight", "head.weight", "scale"]
    found = flows(model, torch.zeros(1, 3, 3), names)
    assert found[:3] == pytest.approx([flow] * 3)  # float32 weights to the last digit
    assert found[3] > 0  # scales stay


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4, nonlinearity="relu", batch_first=True)
        self.norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.rnn(x)[0].transpose(1, 2)).mean(2))


def test_synflow_conserves_the_flow_through_recurrent_layers_and_instance_norm() -> None:
    torch.manual_seed(0)
    model = Recurrent()
    assert model.norm.running_mean is not None
    model.norm.running_mean.uniform_(-3, -1)
    first, last = flows(model, torch.zeros(1, 5, 3), ["rnn.weight_ih_l0", "head.weight"])
    assert first == pytest.approx(last)


def test_synflow_does_not_see_the_keys_and_values_that_attention_adds() -> None:
    model = case_named("attention_bias_kv").problem()[0]
    x, names = torch.zeros(1, 3, 3, dtype=torch.float64), ["embed.weight", "head.weight"]
    before = flows(model, x, names)
    with torch.no_grad():
        for name in ("bias_k", "bias_v"):
            model.get_parameter(f"attention.{name}").mul_(10)
    assert flows(model, x, names) == before


def test_synflow_stays_finite_in_a_deep_wide_network() -> None:
    layers: list[nn.Module] = []
    for _ in range(90):
        layers += [nn.Linear(40, 40, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(40, 2))
    scores: Named = pai.load_scorer("synflow")(model, [(torch.zeros(1, 40), torch.tensor([0]))])
    assert all(bool((value > 0).any()) for value in scores.values())
    assert max(float(value.max()) for value in scores.values()) > 1e38  # beyond float32


def test_magnitude_is_the_absolute_weight() -> None:
    model, x, y = CASES[0].problem()
    truth = flatten(pai.prunable_parameters(model)).detach().abs()
    assert torch.equal(score("magnitude", model, [(x, y)]), truth)


def test_random_scores_are_uniform_reproducible_and_ignore_the_weights() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 2))
    batches = [(torch.zeros(1, 100), torch.tensor([0]))]
    first = score("random", model, batches)
    nn.init.zeros_(model.get_parameter("0.weight"))
    assert torch.equal(first, score("random", model, batches))
    quartiles = torch.quantile(first, torch.tensor([0.25, 0.5, 0.75], dtype=first.dtype))
    assert (quartiles - torch.tensor([0.25, 0.5, 0.75])).abs().max() < 0.03
    assert first.min() >= 0
    assert first.max() < 1
