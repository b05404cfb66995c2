"""Layers whose first axis is not that of the samples, and other uses the rules are not for.

Whatever a model does with its layers, squares must be those of autograd, sample by sample.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import case_named
from reference import flatten, per_sample_gradients
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import pai
from pai.curvature import EmpiricalFisher
from pai.curvature.per_sample import _selects_by_data
from pai.curvature.rules import rule_for
from pai.state import scoring_mode

Problem = tuple[nn.Module, Tensor, Tensor]
N = 6


def labels(samples: int = N) -> Tensor:
    return torch.arange(samples) % 3


class FlatTokens(nn.Module):
    """Linear layers on all tokens of all samples in one axis; token 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up = nn.Embedding(9, 4), nn.Linear(4, 5)
        self.down, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.down(torch.tanh(self.up(self.embed(tokens).view(-1, 4))))
        real = (tokens > 0).to(x.dtype)[..., None]
        return self.head((x.view(*tokens.shape, 4) * real).sum(1) / real.sum(1))


def flat_tokens() -> Problem:
    tokens = torch.randint(1, 9, (N, 4))
    tokens[0, 1:] = 0  # one real token: as if the first axis were that of the samples
    return FlatTokens(), tokens, labels()


class Experts(nn.Module):
    """Each token goes to one of two experts, which sees those tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens, first = x.flatten(0, 1), x.flatten(0, 1)[:, 0] > 0
        out = torch.zeros_like(tokens)
        for expert, chosen in zip(self.experts, (first, ~first), strict=True):
            out = out.index_put((chosen,), torch.tanh(expert(tokens[chosen])))
        return self.head(out.view_as(x).mean(1))


def experts() -> Problem:
    x = torch.randn(N, 3, 4)
    x[:, :, 0] = -x[:, :, 0].abs()
    x[torch.arange(N), torch.arange(N) % 3, 0] *= -1  # N tokens to the first expert, one of each
    x[1, :, 0] = 1.0
    x[2, :, 0] = -1.0  # but two of one sample and none of another: still N in all
    x[1, 0, 0] = -1.0
    return Experts(), x, labels()


def no_tokens_for_an_expert() -> Problem:
    x = torch.randn(N, 3, 4)
    x[:, :, 0] = x[:, :, 0].abs() + 0.1
    return Experts(), x, labels()


class Calls(nn.Module):
    """An MLP whose layers are called by ``call``."""

    def __init__(self, call: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.call(self.second, torch.tanh(self.call(self.first, x)))))


def calling(call: Callable[[nn.Linear, Tensor], Tensor]) -> Callable[[], Problem]:
    return lambda: (Calls(call), torch.randn(N, 4), labels())


def one_by_one(layer: nn.Linear, x: Tensor) -> Tensor:
    return torch.stack([layer(row) for row in x])


def vectorised(layer: nn.Linear, x: Tensor) -> Tensor:
    return torch.vmap(layer)(x)


def beside_a_prototype(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(x) * layer(torch.ones_like(x[:2])).sum()


def after_a_constant(layer: nn.Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        constant = layer(x)
    return layer(x) + constant


class Frozen(nn.Module):
    """A backbone without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.tanh(self.backbone(x))
        return self.head(x)


class Latent(nn.Module):
    """A layer that sees no sample at all."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.ones(4))
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * torch.tanh(self.first(self.latent)))


class SingleImages(nn.Module):
    """A convolution that is given images without an axis of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([torch.tanh(self.conv(image)).mean((1, 2)) for image in x]))


class SharedConvolution(nn.Module):
    """One convolution with stride and padding, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(torch.tanh(self.conv(x)))).mean((2, 3)))


def nothing_in_the_first_samples(dead: int) -> Callable[[], Problem]:
    def problem() -> Problem:
        model, x, y = case_named("sequence_first").problem()
        with torch.no_grad():
            model.get_parameter("embed.bias").zero_()
        x = x.clone()
        x[:dead] = 0  # no gradient for the first layer, which the rule gets wrong
        return model, x, y

    return problem


class Doubled(nn.Module):
    """A layer whose output a hook doubles, of which the rule knows nothing."""

    def __init__(self, width: int = 4, outputs: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, outputs, bias=False)
        self.layer.register_forward_hook(lambda module, inputs, output: 2 * output)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


def doubled_after(dead: int) -> Callable[[], Problem]:
    def problem() -> Problem:
        x = torch.randn(N, 4)
        x[:dead] = 0  # no gradient for the layer
        return Doubled(), x, labels()

    return problem


class UsedOutsideToo(nn.Module):
    """Layers whose weights are used behind their backs too, for the last samples alone."""

    def __init__(self, again: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        late = (x[:, :1] > 0).to(x.dtype)
        return self.head(torch.tanh(self.layer(x) + late * self.again(x, self.layer.weight)))


def used_outside(again: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Problem]:
    def problem() -> Problem:
        x = torch.randn(N, 4)
        x[:, 0] = x[:, 0].abs() * torch.tensor([-1] * 4 + [1] * (N - 4))
        return UsedOutsideToo(again), x, labels()

    return problem


class SortedExperts(Experts):
    """Tokens are sorted by their expert and cut into one piece for each."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        route = (tokens[:, 0] > 0).long()
        order = route.argsort(stable=True)
        counts = [int((route == 0).sum()), int((route == 1).sum())]
        parts = zip(self.experts, tokens[order].split(counts), strict=True)
        out = torch.cat([expert(part) for expert, part in parts])[order.argsort()]
        return self.head(torch.tanh(out).view(*x.shape[:2], 4).mean(1))


def sorted_experts() -> Problem:
    x = torch.randn(N, 2, 4)
    first = torch.tensor([[0, 1], [0, 1], [1, 1], [0, 0], [1, 1], [0, 0]])  # one of each at first
    x[..., 0] = x[..., 0].abs() * (2 * first - 1)
    return SortedExperts(), x, labels()


class SwapsWeights(nn.Module):
    """Calls a layer with other weights in the place of its own, made from them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = {"weight": self.layer.weight * 2, "bias": self.layer.bias}
        out: Tensor = functional_call(self.layer, weights, (x,))
        return self.head(torch.tanh(out))


class OwnLinear(nn.Linear):
    """Computes what any linear layer does."""


class HalfLinear(nn.Linear):
    """Computes half of it."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class OwnConv(nn.Conv2d):
    """Convolves the squares of the pixels."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x.square(), weight, bias)


class InTuples(nn.Module):
    """A layer whose output a hook puts into a tuple, and one without weights at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.empty = nn.Linear(1, 5)
        self.empty.weight = nn.Parameter(torch.empty(5, 0))  # torch warns of filling it
        self.layer.register_forward_hook(lambda module, inputs, output: (output,))

    def forward(self, x: Tensor) -> Tensor:
        (out,) = self.layer(x)
        return self.head(torch.tanh(out + self.empty(x[:, :0])))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "flat tokens": flat_tokens,
    "in tuples": lambda: (InTuples(), torch.randn(N, 4), labels()),
    "experts": experts,
    "no tokens for an expert": no_tokens_for_an_expert,
    "sorted experts": sorted_experts,
    "swaps weights": lambda: (SwapsWeights(), torch.randn(N, 4), labels()),
    "keyword": calling(lambda layer, x: layer(input=x)),
    "one by one": calling(one_by_one),
    "vmap": calling(vectorised),
    "beside a prototype": calling(beside_a_prototype),
    "after a constant": calling(after_a_constant),
    "own linear": lambda: (
        nn.Sequential(OwnLinear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        torch.randn(N, 4),
        labels(),
    ),
    "half linear": lambda: (
        nn.Sequential(HalfLinear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        torch.randn(N, 4),
        labels(),
    ),
    "own convolution": lambda: (
        nn.Sequential(OwnConv(2, 3, 2), nn.Flatten(), nn.Linear(12, 3)),
        torch.randn(N, 2, 3, 3),
        labels(),
    ),
    "frozen": lambda: (Frozen(), torch.randn(N, 4), labels()),
    "latent": lambda: (Latent(), torch.randn(N, 4), labels()),
    "single images": lambda: (SingleImages(), torch.randn(N, 2, 4, 4), labels()),
    "shared convolution": lambda: (SharedConvolution(), torch.randn(N, 2, 6, 6), labels()),
    "nothing in the first sample": nothing_in_the_first_samples(1),
    "nothing in the first five": nothing_in_the_first_samples(5),
    **{f"doubled, after {n}": doubled_after(n) for n in (0, 1, 2, 3, 5)},
    "used again": used_outside(F.linear),
    "its transpose used": used_outside(lambda x, w: x @ w.T),
    "a view of it used": used_outside(lambda x, w: x @ w.view(4, 4)),
    "used among others": used_outside(lambda x, w: x @ torch.cat([w, w])[:4]),
    "its halves used": used_outside(lambda x, w: x @ torch.cat(w.chunk(2))),
    "its numbers used": used_outside(lambda x, w: x * w.detach().norm() * w.data[0]),
}


def problem(name: str) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x, y = PROBLEMS[name]()
    model = model.double().eval()
    return model, x.double() if x.is_floating_point() else x, y


def diagonal(model: nn.Module, batches: Any, **options: Any) -> Tensor:
    parameters = pai.prunable_parameters(model, include_classifier=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # slow paths are announced
        return flatten(pai.curvature_diagonal(model, batches, parameters=parameters, **options))


@pytest.mark.parametrize("size", [1, 2, 4, 100])
@pytest.mark.parametrize("name", PROBLEMS)
def test_squares_are_those_of_autograd_whatever_the_layers_see(name: str, size: int) -> None:
    model, x, y = problem(name)
    parameters = pai.prunable_parameters(model, include_classifier=True)
    truth = per_sample_gradients(model, parameters, x, y, 1.0).square().mean(0)
    batches = list(zip(x.split(size), y.split(size), strict=True))
    found = diagonal(model, batches, estimator="empirical_fisher")
    assert (found - truth).abs().max() <= 1e-10 * truth.abs().max()
    backwards = [(a.flip(0), b.flip(0)) for a, b in reversed(batches)]
    found = diagonal(model, backwards, estimator="empirical_fisher")
    assert (found - truth).abs().max() <= 1e-10 * truth.abs().max()


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gradient_beside_them_is_the_mean_of_the_samples(name: str) -> None:
    model, x, y = problem(name)
    parameters = pai.prunable_parameters(model, include_classifier=True)
    truth = per_sample_gradients(model, parameters, x, y, 1.0).mean(0)
    with warnings.catch_warnings(), scoring_mode(model):
        warnings.simplefilter("ignore", UserWarning)  # slow paths are announced
        found = EmpiricalFisher()(
            model, [(x[:4], y[:4]), (x[4:], y[4:])], parameters,
            loss_fn=None, generator=None, with_gradient=True,
        ).gradient  # fmt: skip
    assert found is not None
    assert (flatten(found) - truth).abs().max() <= 1e-10 * truth.abs().max()


@pytest.mark.parametrize("estimator", ["empirical_fisher", "exact_ggn", "mc_fisher", "hutchinson"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_empty_batches_change_nothing(estimator: str, place: int) -> None:
    model, x, y = problem("nothing in the first sample")
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    options: dict[str, Any] = {"estimator": estimator}
    if estimator in ("mc_fisher", "hutchinson"):
        options["generator"] = torch.Generator().manual_seed(0)
    whole = diagonal(model, batches, **options)
    batches.insert(place, (x[:0], y[:0]))
    options |= {"generator": torch.Generator().manual_seed(0)} if "generator" in options else {}
    assert torch.equal(diagonal(model, batches, **options), whole)


@pytest.mark.parametrize(
    ("select", "selects"),
    [
        (lambda x: x[x > 0], True), (lambda x: x[(x[:, 0] > 0), 1], True),
        (torch.nonzero, True), (lambda x: x.nonzero(), True),
        (lambda x: torch.where(x > 0), True), (lambda x: x.masked_select(x > 0), True),
        (lambda x: torch.where(x > 0, x, 0), False), (lambda x: x[:, 1:], False),
        (lambda x: x[torch.tensor([0, 1])], False), (lambda x: x[x.argmax(0)], False),
        (torch.argsort, True), (lambda x: x.sort(1), True), (lambda x: x.topk(1), True),
        (lambda x: x.flatten().long().clamp(min=0).bincount(), True),
        (lambda x: x.unique_consecutive(), True), (lambda x: x.tolist(), True),
    ],
)  # fmt: skip
def test_selections_by_value_are_noticed(select: Callable[[Tensor], Any], selects: bool) -> None:
    class Selecting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            select(x)
            return x

    assert _selects_by_data(Selecting(), torch.randn(3, 2)) is selects


def test_slow_layers_are_announced_once() -> None:
    model, x, y = problem("flat tokens")
    with pytest.warns(UserWarning, match="no fast per-sample rule for up.weight") as caught:
        pai.curvature_diagonal(model, [(x[:3], y[:3]), (x[3:], y[3:])], "empirical_fisher")
    assert len(caught) == 1


def test_a_weight_whose_numbers_alone_are_used_is_no_slow_layer() -> None:
    model, x, y = problem("its numbers used")
    pai.curvature_diagonal(model, [(x, y)], "empirical_fisher")  # would warn
    model, x, y = problem("used again")
    with pytest.warns(UserWarning, match=r"no fast per-sample rule for layer\.weight: "):
        pai.curvature_diagonal(model, [(x, y)], "empirical_fisher")


def test_a_frozen_layer_is_no_slow_layer() -> None:
    model, x, y = problem("frozen")
    pai.curvature_diagonal(model, [(x, y)], "empirical_fisher")  # would warn


def test_autocast_takes_the_slow_path() -> None:
    model, x, y = problem("keyword")
    model, x = model.float(), x.float()
    exact = diagonal(model, [(x, y)], estimator="empirical_fisher")
    with torch.autocast("cpu", torch.bfloat16):
        rough = diagonal(model, [(x, y)], estimator="empirical_fisher")
    assert 1e-6 < (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("estimator", ["empirical_fisher", "exact_ggn"])
def test_sums_of_short_numbers_are_not_short(estimator: Any) -> None:
    """A sum of 4,000 squares in bfloat16 would stop growing after some hundreds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(4000, 8), torch.randint(0, 3, (4000,))
    exact = pai.curvature_diagonal(model, [(x, y)], estimator)["0.weight"]
    short = model.bfloat16()
    batches = list(zip(x.bfloat16().split(10), y.split(10), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the rules are trusted within the type's rounding
        found = pai.curvature_diagonal(short, batches, estimator)["0.weight"]
    assert found.dtype == torch.float32
    assert (found - exact).norm() / exact.norm() < 0.03
    assert abs(found.sum() / exact.sum() - 1) < 0.01


def test_a_model_without_parameters_in_its_graph_has_no_curvature() -> None:
    class Constant(Frozen):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                out: Tensor = super().forward(x)
            return out

    model, (x, y) = Constant().double(), (torch.randn(N, 4).double(), labels())
    found = pai.curvature_diagonal(model, [(x, y)], "empirical_fisher")
    assert not any(value.any() for value in found.values())


@pytest.mark.parametrize("dead", [0, 3])
def test_gradients_that_cancel_are_gradients(dead: int) -> None:
    """Two samples with opposite gradients: the sum over them is exactly zero.

    That the rule is wrong, only a trial on these samples can show.
    """
    model = Doubled(width=2, outputs=1).double()
    x, y = torch.zeros(dead + 2, 2).double(), torch.zeros(dead + 2, 1).double()
    x[dead:], y[dead], y[dead + 1] = 1.0, 1.0, -1.0
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0, -1.0]]))
        model.layer.weight.fill_(0.5)
    with pytest.warns(UserWarning, match="no fast per-sample rule for layer.weight"):
        found = pai.curvature_diagonal(model, [(x, y)], "empirical_fisher", loss_fn=F.mse_loss)
    expected = torch.full((2, 2), 16.0 * 2 / len(x)).double()
    assert torch.allclose(found["layer.weight"], expected)


def test_gradients_whose_squares_are_zero_are_not_tried_for_ever() -> None:
    class Counted(Doubled):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            assert self.passes < 100
            return super().forward(x)

    model, x = Counted(), torch.full((N, 4), 1e-30)
    found = diagonal(model, [(x, labels())], estimator="empirical_fisher")
    assert not found[: model.layer.weight.numel()].any()


class Slow(nn.Linear):
    """A layer with no rule: rules are for torch's own."""


@pytest.mark.parametrize("dead", [0, 1, 3, 5])
def test_several_draws_are_tried_where_the_first_samples_have_no_gradient(dead: int) -> None:
    model, x, y = Doubled().double(), torch.randn(N, 4).double(), labels()
    x[:dead] = 0
    truth = Doubled().double()
    truth.layer.__class__, truth.head.__class__ = Slow, Slow
    truth.load_state_dict(model.state_dict())
    found, expected = (
        diagonal(
            network, [(x[:4], y[:4]), (x[4:], y[4:])], estimator="mc_fisher", num_draws=3,
            generator=torch.Generator().manual_seed(0),
        )
        for network in (model, truth)
    )  # fmt: skip
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_samples_that_have_a_gradient_only_beside_others() -> None:
    class Centred(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            return out - out.mean(0)

    torch.manual_seed(0)
    x, y, layer = torch.randn(N, 4), torch.zeros(N).long(), nn.Linear(4, 3)
    x[1] = x[0]  # all others differ
    model = Centred(layer)
    named = pai.prunable_parameters(model, include_classifier=True)
    found = pai.curvature_diagonal(model, [(x, y)], "empirical_fisher", parameters=named)
    assert found["0.weight"].any()


def test_a_rule_that_fitted_the_first_batch_need_not_fit_the_next() -> None:
    model, tokens, y = problem("flat tokens")
    tokens = tokens.clamp(min=1)
    parameters = pai.prunable_parameters(model, include_classifier=True)
    short, longer = (tokens[:3, :1], y[:3]), (tokens[3:], y[3:])  # one token for each sample first
    rows = [per_sample_gradients(model, parameters, *batch, 1.0) for batch in (short, longer)]
    truth = torch.cat(rows).square().mean(0)
    with pytest.warns(UserWarning, match=r"no fast per-sample rule for up\.weight, down\.weight: "):
        found = pai.curvature_diagonal(
            model, [short, longer], "empirical_fisher", parameters=parameters
        )
    assert (flatten(found) - truth).abs().max() <= 1e-10 * truth.abs().max()


@pytest.mark.parametrize(
    ("model", "passes"),
    [(Doubled(), 1 + N), (Calls(lambda layer, x: layer(x)), 1)],  # by rules, and of each sample
    ids=["slow", "fast"],
)
def test_nothing_is_tried_again_in_later_batches(model: nn.Module, passes: int) -> None:
    seen: list[nn.Module] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(module))
    counts = []
    for batches in (1, 2, 3):
        seen.clear()
        diagonal(model, [(torch.randn(N, 4), labels())] * batches, estimator="empirical_fisher")
        counts.append(len(seen))
    assert counts[2] - counts[1] == counts[1] - counts[0] == passes


@pytest.mark.parametrize("sizes", [(6,), (1, 5), (1, 1, 4), (1, 2)])
def test_a_first_batch_of_one_sample_says_nothing_of_several(sizes: tuple[int, ...]) -> None:
    class Mixing(nn.Sequential):
        """Lets samples influence each other: no rule can be right."""

        def forward(self, x: Tensor) -> Tensor:
            hidden = self[0](x)
            return self[1](torch.tanh(hidden + 0.5 * hidden.mean(0)))

    model = Mixing(nn.Linear(4, 5), nn.Linear(5, 3))
    x, y = torch.randn(sum(sizes), 4), labels()[: sum(sizes)]
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    with pytest.warns(UserWarning, match="no fast per-sample rule for 0.weight"):
        pai.curvature_diagonal(model, batches, "empirical_fisher")


@pytest.mark.parametrize(
    ("name", "fast"), [("own linear", True), ("half linear", False), ("own convolution", False)]
)
def test_a_type_that_inherits_its_forward_pass_inherits_the_rule(name: str, fast: bool) -> None:
    model, x, y = problem(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pai.curvature_diagonal(model, [(x, y)], "empirical_fisher")
    assert len(caught) == (not fast)


def test_a_rule_is_for_the_forward_pass_it_was_written_for() -> None:
    assert rule_for(HalfLinear(3, 2)) is None
    assert rule_for(OwnConv(3, 2, 1)) is None
    assert rule_for(OwnLinear(3, 2)) is rule_for(nn.Linear(3, 2)) is not None
