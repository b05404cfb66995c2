"""NTK-SAP, ProsPr, PX, FORCE, options of SNIP and GraSP: against dense autograd or by hand."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES
from reference import flatten, hessian, per_sample_gradients, unflatten
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.errors import ConfigError
from pai.masking.schedule import Exponential, Schedule
from pai.parallel import common_stream

Named = dict[str, Tensor]
CASE = {case.name: case for case in CASES}


def close(actual: Named, expected: Named, tolerance: float = 1e-10) -> None:
    assert list(actual) == list(expected)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() <= tolerance * largest, name


def by_differences(function: Callable[[Named], Tensor], at: Named, step: float = 1e-5) -> Named:
    """Return the gradient of a scalar function of float64 tensors by central differences."""
    found = {}
    for name, value in at.items():
        slope = torch.zeros_like(value)
        for position in range(value.numel()):
            ends = []
            for sign in (1, -1):
                moved = {key: tensor.clone() for key, tensor in at.items()}
                moved[name].view(-1)[position] += sign * step
                ends.append(function(moved))
            slope.view(-1)[position] = (ends[0] - ends[1]) / (2 * step)
        found[name] = slope
    return found


def with_weights(model: nn.Module, weights: Named) -> nn.Module:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in weights.items():
            changed.get_parameter(name).copy_(value)
    return changed


# NTK-SAP


def test_ntk_sap_is_the_derivative_of_the_change_of_outputs() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)
    ).double()
    batches = [(torch.zeros(3, 1, 3, 3, dtype=torch.float64), torch.zeros(3))] * 2
    weights = pai.prunable_parameters(model, include_classifier=True)
    w = {name: p.detach().clone() for name, p in weights.items()}
    stream = common_stream(torch.Generator().manual_seed(7))
    draws = []
    for _ in batches:
        fresh = {
            n: v.flatten()[torch.randperm(v.numel(), generator=stream)].view(v.shape)
            for n, v in w.items()
        }
        xi = {n: torch.randn(v.shape, generator=stream, dtype=v.dtype) for n, v in w.items()}
        draws.append((fresh, xi, torch.randn(3, 1, 3, 3, generator=stream, dtype=torch.float64)))

    def change(mask: Named) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for fresh, xi, x in draws:
            first = with_weights(model, fresh)  # its statistics stay as the mask moves
            norm: Any = first.get_submodule("1")
            norm.momentum = 1.0
            first.train()(x)
            outs = []
            for values in (fresh, {n: fresh[n] + 0.05 * xi[n] for n in fresh}):
                network = with_weights(first, {n: values[n] * mask[n] for n in values})
                outs.append(network.eval()(x))
            total = total + (outs[0] - outs[1]).square().sum().detach()
        return total

    truth = by_differences(change, {name: torch.ones_like(value) for name, value in w.items()})
    scorer = pai.load_scorer("ntk_sap", epsilon=0.05)
    found = scorer(model, batches, generator=torch.Generator().manual_seed(7), parameters=weights)
    close(found, {name: value.abs() for name, value in truth.items()}, 1e-7)


def test_ntk_sap_of_a_linear_layer_is_twice_the_squared_input_of_each_weight() -> None:
    """The derivative of ``||x (w + e xi) m - x w m||^2`` is on average ``2 e^2`` per input."""
    model = nn.Linear(3, 2, bias=False)
    scorer = pai.load_scorer("ntk_sap", num_draws=3000)
    scores = scorer(
        model, [(torch.full((8, 3), 99.0), torch.zeros(8))],
        generator=torch.Generator().manual_seed(0), parameters=dict(model.named_parameters()),
    )["weight"]  # fmt: skip
    expected = torch.full((2, 3), 2 * 0.01**2 * 8 * 3000)
    torch.testing.assert_close(scores, expected, rtol=0.15, atol=0)


def test_ntk_sap_ignores_data_and_warmup_and_the_order_of_the_weights() -> None:
    case = CASE["conv_plain"]
    model, x, y = case.problem()

    def scores(x: Tensor, **options: Any) -> Named:
        stream = torch.Generator().manual_seed(1)
        found = pai.load_scorer("ntk_sap", **options)(model, [(x, y)], generator=stream)
        return dict(found)

    first, own = scores(x), scores(x, fresh_weights=False)
    pai.warm_up_batchnorm(model, [(x, y)])
    close(scores(x + 1), first, 0)
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(model.get_parameter("0.weight").flip(0))
    assert not torch.equal(scores(x, fresh_weights=False)["0.weight"], own["0.weight"])


# ProsPr


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp_tanh", {"inner_steps": 3, "inner_lr": 0.3}),
        ("mlp_tanh", {"inner_steps": 2, "inner_lr": 0.3, "inner_momentum": 0.9}),
        ("conv_four_positions", {"inner_steps": 2, "inner_lr": 0.1}),
        ("conv_four_positions", {"inner_steps": 1, "inner_lr": 0.1, "train_batchnorm": False}),
    ],
)
def test_prospr_is_the_derivative_of_the_loss_after_training(
    name: str, options: dict[str, Any]
) -> None:
    model, x, y = CASE[name].problem()
    batches = [(x[:3], y[:3]), (x[2:], y[2:])]
    weights = pai.prunable_parameters(model)
    w = {name: p.detach().clone() for name, p in weights.items()}
    steps, momentum = options["inner_steps"], options.get("inner_momentum", 0.0)

    def loss_after(mask: Named) -> Tensor:
        trained = with_weights(model, {n: w[n] * mask[n] for n in w})
        trained.train(options.get("train_batchnorm", True))
        sgd = torch.optim.SGD(trained.parameters(), options["inner_lr"], momentum=momentum)
        for step in range(steps):
            inputs, targets = batches[step % 2]
            sgd.zero_grad()
            F.cross_entropy(trained(inputs), targets).backward()
            sgd.step()
        inputs, targets = batches[steps % 2]
        return F.cross_entropy(trained(inputs), targets).detach()

    truth = by_differences(loss_after, {n: torch.ones_like(v) for n, v in w.items()})
    found = pai.load_scorer("prospr", **options)(model, batches)
    close(found, {n: v.abs() for n, v in truth.items()}, 1e-6)


def test_first_order_prospr_takes_the_gradients_of_the_steps_as_constants() -> None:
    model, x, y = CASE["mlp_tanh"].problem()
    w = {n: p.detach().clone() for n, p in pai.prunable_parameters(model).items()}
    trained = copy.deepcopy(model)
    sgd = torch.optim.SGD(trained.parameters(), 0.3)
    for _ in range(3):
        sgd.zero_grad()
        F.cross_entropy(trained(x), y).backward()
        sgd.step()
    values = [trained.get_parameter(n) for n in w]
    slopes = torch.autograd.grad(F.cross_entropy(trained(x), y), values)
    truth = {n: (v * g).abs() for (n, v), g in zip(w.items(), slopes, strict=True)}
    found = pai.load_scorer("prospr", inner_lr=0.3, first_order=True)(model, [(x, y)])
    close(found, truth)
    assert not torch.allclose(
        found["0.weight"], pai.load_scorer("prospr", inner_lr=0.3)(model, [(x, y)])["0.weight"]
    )


# PX


@pytest.mark.parametrize("mode", ["signed", "squared"])
def test_px_equals_the_sum_over_paths_of_a_perceptron(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)
    ).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    u, v, h = (model.get_parameter(f"{i}.weight").detach() for i in (0, 2, 4))
    first = model[0](x)
    second = model[2](first.relu())
    on = [(first > 0).double(), (second > 0).double()]
    head_a, head_b = (h, h) if mode == "signed" else (torch.ones_like(h), h**2)
    a = torch.zeros(2, dtype=torch.float64)
    paths = list(itertools.product(range(3), range(4), range(3), range(2)))
    for i, j, k, c in paths:
        a[c] += (x[:, i] ** 2 * on[0][:, j] * on[1][:, k]).sum() * head_a[c, k]
    truth = {n: torch.zeros_like(p) for n, p in (("0.weight", u), ("2.weight", v), ("4.weight", h))}
    for i, j, k, c in paths:
        share = a[c] * u[j, i] ** 2 * v[k, j] ** 2 * head_b[c, k]
        truth["0.weight"][j, i] += share
        truth["2.weight"][k, j] += share
        truth["4.weight"][c, k] += share
    scores = pai.load_scorer("px", classifier=mode)(
        model, [(x[:2], torch.zeros(2)), (x[2:], torch.zeros(3))],
        parameters=pai.prunable_parameters(model, include_classifier=True),
    )  # fmt: skip
    close(scores, {n: value.abs() / a.abs().max() for n, value in truth.items()})


def test_px_follows_convolution_batchnorm_and_the_winners_of_max_pooling() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(2, 3),
    ).double().eval()  # fmt: skip
    norm: Any = model[1]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-1.5, 0.5]))
        norm.bias.fill_(0.3)
        norm.running_mean.fill_(0.1)
        norm.running_var.copy_(torch.tensor([2.0, 0.5]))
    x = torch.randn(6, 1, 3, 3, dtype=torch.float64)
    w, head = model.get_parameter("0.weight").detach(), model.get_parameter("5.weight").detach()
    before = model[:3](x).detach().flatten(2)  # sample, channel, position
    winner = before.argmax(2)
    scale = (norm.weight**2 / (norm.running_var + norm.eps)).detach()
    a, b = torch.zeros(3, dtype=torch.float64), torch.zeros(2, 2, 2, 3, dtype=torch.float64)
    places = list(itertools.product(range(2), range(2)))
    for c, k, (r, s) in itertools.product(range(2), range(3), places):
        for p, (row, column) in enumerate(places):
            alive = (winner[:, c] == p) & (before[:, c, p] > 0)
            a[k] += (x[:, 0, row + r, column + s] ** 2)[alive].sum() * head[k, c]
            b[c, r, s, k] += scale[c] * w[c, 0, r, s] ** 2 * head[k, c]
    truth = (b * a / a.abs().max()).sum(3).abs()[:, None]
    close(pai.load_scorer("px")(model, [(x, torch.zeros(6))]), {"0.weight": truth})


def test_squared_px_does_not_see_the_data_and_signed_px_does() -> None:
    model, x, y = CASE["residual"].problem()
    for mode, blind in (("squared", True), ("signed", False)):
        scorer = pai.load_scorer("px", classifier=mode)
        first, second = (flatten(scorer(model, [(z, y)])) for z in (x, x.flip(1) * 3))
        assert torch.allclose(first, second, rtol=1e-10) is blind


def test_px_refuses_networks_that_are_no_sum_over_paths() -> None:
    for name in ("mlp_tanh", "attention"):
        model, x, y = CASE[name].problem()
        with pytest.raises(ConfigError, match="no sum over paths"):
            pai.load_scorer("px")(model, [(x, y)])


class Written(nn.Module):
    """A ReLU of one's own between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.head, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.first(x)))


@pytest.mark.parametrize(
    "activation",
    [
        nn.LeakyReLU(), nn.ReLU6(), nn.ELU(), nn.CELU(), nn.PReLU(), nn.RReLU(), nn.Hardtanh(0, 50),
        nn.Threshold(0.1, 0.0), nn.Hardshrink(), nn.Threshold(0.0, 0.0),
        Written(lambda x: x.clamp(min=0)), Written(lambda x: torch.clamp_min(x, 0)),
        Written(lambda x: torch.maximum(x, torch.zeros_like(x))), Written(lambda x: x * (x > 0)),
        Written(lambda x: torch.where(x > 0, x, 0.0)), Written(torch.abs),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_px_refuses_gates_that_it_does_not_see(activation: nn.Module) -> None:
    model = activation
    if not isinstance(activation, Written):
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3), activation, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3)
        )
    x = torch.rand(2, 4) if isinstance(activation, Written) else torch.rand(2, 1, 4, 4)
    with pytest.raises(ConfigError, match=r"no sum over paths .*gates of other activations"):
        pai.load_scorer("px")(model, [(x, torch.zeros(2))])


def test_px_knows_every_way_to_call_a_relu() -> None:
    x = torch.rand(2, 4)
    expected = None
    for relu in (F.relu, torch.relu, nn.ReLU(), Tensor.relu_, lambda x: F.relu(x, inplace=True)):
        torch.manual_seed(0)
        scores = flatten(pai.load_scorer("px")(Written(relu), [(x, torch.zeros(2))]))
        assert expected is None or torch.equal(scores, expected)
        expected = scores


# options of SNIP and GraSP


def batch_gradient(model: nn.Module, x: Tensor, y: Tensor, temperature: float = 1.0) -> Named:
    trained = copy.deepcopy(model).train()
    names = list(pai.prunable_parameters(trained))
    loss = F.cross_entropy(trained(x) / temperature, y)
    found = torch.autograd.grad(loss, [trained.get_parameter(name) for name in names])
    return dict(zip(names, found, strict=True))


def test_snip_with_batch_statistics() -> None:
    model, x, y = CASE["conv_plain"].problem()
    w = {n: p.detach() for n, p in pai.prunable_parameters(model).items()}
    parts = [(x[:3], y[:3]), (x[3:], y[3:])]
    slopes = [batch_gradient(model, *part) for part in parts]
    truth = {n: (v * (3 * slopes[0][n] + 2 * slopes[1][n]) / 5).abs() for n, v in w.items()}
    before = copy.deepcopy(model.state_dict())
    for name in ("snip", "iter_snip", "force"):
        close(pai.load_scorer(name, train_batchnorm=True)(model, parts), truth)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_grasp_with_batch_statistics() -> None:
    model, x, y = CASE["conv_four_positions"].problem()
    parameters = pai.prunable_parameters(model)
    w = {n: p.detach() for n, p in parameters.items()}
    g = batch_gradient(model, x, y, 2.0)

    def flow(values: Named) -> Tensor:
        slope = batch_gradient(with_weights(model, values), x, y, 2.0)
        return torch.stack([(slope[n] * g[n]).sum() for n in g]).sum()

    product = by_differences(flow, w)
    found = pai.load_scorer("grasp", temperature=2.0, train_batchnorm=True)(model, [(x, y)])
    close(found, {n: w[n] * product[n] for n in w}, 1e-6)


@pytest.mark.parametrize("absolute", [False, True])
def test_grasp_from_two_draws(absolute: bool) -> None:
    model, x, y = CASE["mlp_tanh"].problem()
    parameters = pai.prunable_parameters(model)
    g = per_sample_gradients(model, parameters, x[::2], y[::2], 2.0).mean(0)
    truth = flatten(parameters).detach() * (hessian(model, parameters, x[1::2], y[1::2], 2.0) @ g)
    truth = truth.abs() if absolute else truth
    scorer = pai.load_scorer("grasp", temperature=2.0, independent_draws=True, absolute=absolute)
    for size in (1, 2, 3, 5):
        batches = list(zip(x.split(size), y.split(size), strict=True))
        close(scorer(model, batches), unflatten(truth, parameters))


# iterative SNIP and FORCE


def by_hand(model: nn.Module, x: Tensor, y: Tensor, schedule: Schedule, sparsity: float) -> Any:
    """Return the masks of all rounds of ``|w g|``, ``g`` at the masked network."""
    w = {n: p.detach().clone() for n, p in pai.prunable_parameters(model).items()}
    keep = torch.ones(sum(v.numel() for v in w.values()), dtype=torch.bool)
    masks = []
    for target in schedule.sparsities(sparsity):
        cut = with_weights(model, unflatten(flatten(w) * keep, w))
        slope = per_sample_gradients(cut, pai.prunable_parameters(cut), x, y, 1.0).mean(0)
        scores = (flatten(w) * slope).abs()
        if not schedule.revive:
            scores[~keep] = -1
        keep = torch.zeros_like(keep)
        keep[scores.topk(max(1, round((1 - target) * len(keep)))).indices] = True
        masks.append(keep)
    return masks


@pytest.mark.parametrize("name", ["residual", "mlp_tanh"])
@pytest.mark.parametrize("revive", [False, True])
def test_iterative_snip_and_force(name: str, revive: bool) -> None:
    model, x, y = CASE[name].problem()
    schedule = Exponential(8, revive=revive)
    scorer = pai.load_scorer("force" if revive else "iter_snip")
    mask = pai.find_mask(model, [(x, y)], scorer, sparsity=0.9, schedule=schedule)
    masks = by_hand(model, x, y, schedule, 0.9)
    assert torch.equal(flatten(mask), masks[-1])
    returned = sum(int((b & ~a).sum()) for a, b in itertools.pairwise(masks))
    assert (returned > 0) is revive


@pytest.mark.parametrize("name", pai.available_scorers())
def test_every_scorer_works_where_pruned_weights_may_return(name: str) -> None:
    model, x, y = CASE["residual"].problem()
    model.float()
    stream = torch.Generator().manual_seed(0)
    mask = pai.find_mask(
        model, [(x.float(), y)], pai.load_scorer(name), sparsity=0.5,
        schedule=Exponential(2, revive=True), generator=stream,
    )  # fmt: skip
    total = sum(keep.numel() for keep in mask.values())
    assert sum(int(keep.sum()) for keep in mask.values()) == round(total / 2)
