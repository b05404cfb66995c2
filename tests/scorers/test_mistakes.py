"""What callers get wrong is said in a line, or warned of, before numbers are wrong."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pai
import pai.scorers.base
from pai.errors import ConfigError, RunError

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.parametrize("name", ["px", "ntk_sap", "snip", "magnitude", "gts"])
def test_batches_that_can_be_read_only_once_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="can be read only once"):
        pai.load_scorer(name)(mlp(), iter([(X, Y), (X, Y)]))


def test_curvature_refuses_them_too() -> None:
    with pytest.raises(ValueError, match="can be read only once"):
        pai.curvature_diagonal(mlp(), iter([(X, Y)]))


def test_one_batch_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"as in \[\(inputs, targets\)\]"):
        pai.load_scorer("snip")(mlp(), (X, Y))


@pytest.mark.parametrize("name", ["snip", "fd", "gts", "hts", "grasp", "prospr"])
def test_a_model_that_returns_several_things_is_refused(name: str) -> None:
    class Pair(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    model = Pair(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="the model returns a tuple"):
        pai.load_scorer(name)(model, [(X, Y)])


@pytest.mark.parametrize("name", ["snip", "fd", "hts", "grasp"])
def test_a_loss_that_is_no_scalar_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must return a scalar.* shape \[\d\]"):
        pai.load_scorer(name)(
            mlp(), [(X, Y)], loss_fn=lambda f, y: F.cross_entropy(f, y, reduction="none")
        )


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]))],
)
def test_a_loss_that_is_no_mean_over_samples_is_warned_of(loss: nn.Module) -> None:
    torch.manual_seed(1)  # of few networks all samples have about the same loss
    samples = [(100 * X, Y)]
    with pytest.warns(UserWarning, match="no mean over samples"):
        pai.load_scorer("snip")(mlp(), samples, loss_fn=loss)


def test_neither_is_one_in_a_batch_that_begins_with_many_samples_of_a_class() -> None:
    torch.manual_seed(1)
    x, y = 100 * torch.randn(60, 4), torch.arange(3).repeat_interleave(20)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5, 20]))
    with pytest.warns(UserWarning, match=r"no mean over samples \(of 8: "):
        pai.load_scorer("snip")(mlp(), [(x, y)], loss_fn=loss)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(label_smoothing=0.1), F.cross_entropy])
def test_a_loss_that_is_one_is_not(loss: Any) -> None:
    pai.load_scorer("snip")(mlp(), [(X, Y)], loss_fn=loss)


@pytest.mark.parametrize("name", ["md", "gd"])
def test_real_targets_have_no_fisher_of_labels(name: str) -> None:
    with pytest.raises(ValueError, match="targets must be classes"):
        pai.load_scorer(name)(mlp(), [(X, torch.rand(6))])


@pytest.mark.parametrize("name", ["snip", "fd", "hd", "gd", "grasp", "prospr", "grad_norm"])
def test_a_loss_that_was_forgotten_is_noticed(name: str) -> None:
    one = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
    with pytest.raises(ValueError, match=r"^(the model has one output|.*logits)"):
        pai.load_scorer(name)(one, [(X, torch.ones(6, 1))])
    with pytest.raises(ValueError, match=r"^targets are real numbers below zero.*loss_fn="):
        pai.load_scorer(name)(mlp(), [(X, -torch.rand(6, 3) - 1)])


@pytest.mark.parametrize(
    ("batch", "got"), [((X,), "1"), ((X, Y, Y), "3"), ({"x": X}, "dict")],
    ids=["single", "triple", "dict"],
)  # fmt: skip
def test_a_batch_is_a_pair(batch: Any, got: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^a batch must be a pair \(inputs, targets\), got {got}"
    ):
        pai.load_scorer("snip")(mlp(), [batch])


@pytest.mark.parametrize("name", ["snip", "fts", "magnitude", "synflow"])
def test_parameters_of_another_model_are_refused(name: str) -> None:
    parameters = pai.prunable_parameters(mlp())
    with pytest.raises(ValueError, match=r"^parameters: '0\.weight' is no parameter of this model"):
        pai.load_scorer(name)(mlp(), [(X, Y)], parameters=parameters)
    with pytest.raises(ValueError, match=r"^parameters must be a dict .* got a list"):
        pai.load_scorer(name)(mlp(), [(X, Y)], parameters=["0.weight"])


ODD_SCORES: list[tuple[Any, str]] = [
    (lambda p: None, "returns a dict .* returned a NoneType"),
    (list, "this one returned a list$"),
    (lambda p: dict(list(p.items())[1:]), r"no scores for '0\.weight'"),
    (lambda p: {n: v.flatten() for n, v in p.items()}, r"the scores of '0\.weight' have shape"),
    (lambda p: dict.fromkeys(p, 1.0), r"the scores of '0\.weight' have shape none"),
    (lambda p: p | {"bias": torch.ones(2)}, "scores for 'bias', which it was not given"),
]


@pytest.mark.parametrize(("scores", "message"), ODD_SCORES)
def test_scores_are_those_of_all_parameters_in_their_shapes(scores: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 3))

    @dataclass(frozen=True)
    class Own(pai.scorers.base.Scorer):
        def score(self, model: Any, batches: Any, parameters: Any, **options: Any) -> Any:
            return scores({n: p.detach().abs() for n, p in parameters.items()})

    with pytest.raises(ValueError, match=message):
        Own()(model, [(X, Y)])

    def plain(model: Any, batches: Any, *, parameters: Any, **options: Any) -> Any:
        return scores({n: p.detach().abs() for n, p in parameters.items()})

    with pytest.raises(ValueError, match=message):
        pai.find_mask(model, [(X, Y)], plain, sparsity=0.5)


@pytest.mark.parametrize("asked", [{"scorer": "synflow"}, {"schedule": "exponential"}])
def test_names_are_not_the_objects(asked: Any) -> None:
    options = {"scorer": pai.load_scorer("snip"), "sparsity": 0.5, **asked}
    ((kind, name),) = asked.items()
    with pytest.raises(
        ValueError, match=rf"^{kind}: give the object itself, pai.load_{kind}\('{name}'"
    ):
        pai.find_mask(mlp(), [(X, Y)], **options)


@pytest.mark.parametrize("name", ["magnitude", "fd", "snip"])
def test_nothing_to_score_is_an_error(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"no prunable weights.*include_classifier=True\) has them\)$"
    ):
        pai.load_scorer(name)(nn.Linear(4, 3), [(X, Y)])


@pytest.mark.parametrize("name", ["snip", "fd", "hd", "synflow", "ntk_sap", "prospr", "grasp"])
@pytest.mark.parametrize("odd", [{"x": X}, (X, X)], ids=["dict", "tuple"])
def test_inputs_that_are_not_one_tensor_are_refused(name: str, odd: Any) -> None:
    class Several(nn.Sequential):
        def forward(self, x: Any) -> Tensor:
            return super().forward(x["x"] if isinstance(x, dict) else x[0])

    model = Several(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    message = f"^inputs must be one tensor, got {type(odd).__name__}$"
    with pytest.raises(ValueError, match=message):
        pai.load_scorer(name)(model, [(odd, Y)])


def test_targets_that_are_not_one_tensor_are_refused() -> None:
    batches: Any = [(X, list(range(6)))]
    with pytest.raises(ValueError, match=r"^targets must be one tensor, got list$"):
        pai.load_scorer("snip")(mlp(), batches)


class Complex(nn.Module):
    """A complex weight beside real layers, or in a layer."""

    def __init__(self, *, layer: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.spectrum = nn.Parameter(torch.randn(5, dtype=torch.complex64))
        self.complex = nn.Linear(5, 5, dtype=torch.complex64) if layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last((self.complex(self.first(x) * self.spectrum)).abs())
        return out


@pytest.mark.parametrize("name", pai.available_scorers())
def test_complex_weights_are_not_scored(name: str) -> None:
    message = r"^parameters: weights must be real, and 'complex\.weight' is complex64; leave it out"
    model = Complex(layer=True)
    with pytest.raises(ConfigError, match=message):
        parameters = {n: model.get_parameter(f"{n}.weight") for n in ("first", "complex")}
        named = {f"{n}.weight": p for n, p in parameters.items()}
        pai.load_scorer(name)(model, [(X, Y)], parameters=named)


def test_the_default_diagonal_is_the_exact_one_and_others_have_names() -> None:
    model = mlp()
    default = pai.curvature_diagonal(model, [(X, Y)])["0.weight"]
    assert torch.equal(default, pai.curvature_diagonal(model, [(X, Y)], "exact_ggn")["0.weight"])
    message = (
        r"^estimator: 'fisher' is not one of empirical_fisher, mc_fisher, exact_ggn, hutchinson"
    )
    with pytest.raises(ValueError, match=message):
        pai.curvature_diagonal(model, [(X, Y)], "fisher")  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["empirical_fisher", "mc_fisher", "exact_ggn", "hutchinson"])
def test_curvature_has_real_weights_and_some(estimator: Any) -> None:
    model = Complex(layer=True)
    named = {"complex.weight": model.get_parameter("complex.weight")}
    with pytest.raises(ConfigError, match=r"^parameters: weights must be real"):
        pai.curvature_diagonal(model, [(X, Y)], estimator, parameters=named)
    with pytest.raises(ValueError, match=r"^the model has no prunable weights"):
        pai.curvature_diagonal(nn.Linear(4, 3), [(X, Y)], estimator)


def test_a_network_without_forward_derivatives_has_no_gauss_newton_products() -> None:
    class NoTangents(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0] * 2

    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = NoTangents.apply(super().forward(x))
            return out

    model = Twice(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    message = r"^a part of the network has no forward derivative.*'hessian' needs none \(You must"
    with pytest.raises(RunError, match=message):
        pai.curvature_diagonal(model, [(X, Y)], "hutchinson", matrix="gauss_newton")
    pai.curvature_diagonal(model, [(X, Y)], "hutchinson")


@pytest.mark.parametrize("name", ["synflow", "px"])
def test_nor_may_they_be_in_the_network_where_all_weights_are_changed(name: str) -> None:
    with pytest.raises(ConfigError, match=r"weights must be real, and 'spectrum' is complex64"):
        pai.load_scorer(name)(Complex(layer=False), [(X, Y)])


@pytest.mark.parametrize("name", ["snip", "fd", "gd", "md", "hd", "grasp", "prospr", "ntk_sap"])
def test_elsewhere_they_may(name: str) -> None:
    assert list(pai.load_scorer(name)(Complex(layer=False), [(X, Y)])) == ["first.weight"]
