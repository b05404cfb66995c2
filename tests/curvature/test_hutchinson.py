"""Hutchinson's products: one probe, a loss of one's own, how many samples at a time."""

from typing import Any

import pytest
import torch
from reference import flatten, ggn, hessian
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.curvature import Hutchinson
from pai.curvature.hutchinson import _Chunk, rademacher
from pai.memory import activation_bytes
from pai.models.resnet import thin_resnet
from pai.models.vgg import vgg
from pai.parallel import common_stream
from pai.state import scoring_mode

N = 6


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        return model, torch.randn(N, 4).double(), torch.arange(N) % 3


def first_seed() -> int:
    """Return the seed of the first probe that a generator with seed 5 gives."""
    return common_stream(torch.Generator().manual_seed(5)).initial_seed()


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_one_probe_is_the_product_with_it(matrix: Any) -> None:
    model, x, y = problem()
    parameters = pai.prunable_parameters(model, include_classifier=True)
    found = pai.curvature_diagonal(
        model, [(x, y)], "hutchinson", num_probes=1, matrix=matrix, parameters=parameters,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    stream = torch.Generator().manual_seed(first_seed())
    probe = flatten({name: rademacher(p, stream) for name, p in parameters.items()})
    dense = hessian(model, parameters, x, y, 1.0)
    if matrix == "gauss_newton":
        dense = ggn(model, parameters, x, 1.0)
    assert torch.allclose(flatten(found), probe * (dense @ probe), rtol=1e-10, atol=1e-14)


def test_probes_differ_between_batches_and_among_themselves() -> None:
    """The same sample three times: the mean over batches and probes, none of which repeats."""
    model, x, y = problem()
    parameters = pai.prunable_parameters(model, include_classifier=True)
    options: dict[str, Any] = {"num_probes": 2, "parameters": parameters}
    found = pai.curvature_diagonal(
        model, [(x[:1], y[:1])] * 3, "hutchinson",
        generator=torch.Generator().manual_seed(5), **options,
    )  # fmt: skip
    dense = hessian(model, parameters, x[:1], y[:1], 1.0)
    products = []
    for number in range(6):
        stream = torch.Generator().manual_seed(first_seed() + number)
        probe = flatten({name: rademacher(p, stream) for name, p in parameters.items()})
        products.append(probe * (dense @ probe))
    assert len({tuple(product.tolist()) for product in products}) == 6
    mean = torch.stack(products).mean(0)
    assert torch.allclose(flatten(found), mean, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_the_gradient_beside_it_is_that_of_the_loss_given(matrix: Any) -> None:
    model, x, y = problem()
    parameters = pai.prunable_parameters(model, include_classifier=True)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, F.one_hot(targets, 3).to(outputs))

    with scoring_mode(model):
        found = Hutchinson(num_probes=1, matrix=matrix)(
            model, [(x[:4], y[:4]), (x[4:], y[4:])], parameters,
            loss_fn=loss, generator=None, with_gradient=True,
        ).gradient  # fmt: skip
    assert found is not None
    expected = torch.autograd.grad(loss(model(x), y), list(parameters.values()))
    for value, truth in zip(found.values(), expected, strict=True):
        assert torch.allclose(value, truth, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("matrix", "pieces"), [("hessian", [2, 2, 2]), ("gauss_newton", [4, 2])])
def test_pieces_are_as_large_as_the_graph_they_keep_allows(matrix: Any, pieces: list[int]) -> None:
    model, x, y = problem()
    sizes = []
    budget = 8 * activation_bytes(model, x[:1]) / 2**30  # eight samples of a plain pass
    with pai.memory_budget(budget):
        handle = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        pai.curvature_diagonal(model, [(x, y)], "hutchinson", num_probes=1, matrix=matrix)
        handle.remove()
    passes = [n for n in sizes[1:] if n > 1]  # the first one measures a sample
    assert [n for i, n in enumerate(passes) if matrix == "hessian" or i % 2 == 0] == pieces


class Fixed(nn.Module):
    """Ends an iteration with one step that has a gradient, and pads with a token."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4, padding_idx=0)
        with torch.no_grad():
            self.words.weight[0] = 1.0
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens).mean(1)
        with torch.no_grad():
            z = torch.tanh(self.layer(x))
        return self.head(torch.tanh(self.layer(z) + x))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0])
def test_gauss_newton_products_are_of_the_gradient_that_reverse_mode_has(scale: float) -> None:
    torch.manual_seed(0)
    model = Fixed().double().eval()
    with torch.no_grad():
        model.head.weight.mul_(scale)
    tokens, y = torch.tensor([[0, 1], [2, 0], [3, 4], [0, 0], [1, 1], [4, 0]]), torch.arange(N) % 3
    parameters = dict(model.named_parameters())
    if scale < 1:  # all products are small, not only some
        parameters = {name: p for name, p in parameters.items() if "head" not in name}
    found = pai.curvature_diagonal(
        model, [(tokens, y)], "hutchinson", num_probes=1, matrix="gauss_newton",
        parameters=parameters, generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    stream = torch.Generator().manual_seed(first_seed())
    probe = flatten({name: rademacher(p, stream) for name, p in parameters.items()})
    dense = ggn(model, parameters, tokens, 1.0)
    assert torch.allclose(flatten(found), probe * (dense @ probe), rtol=1e-9, atol=1e-14 * scale**2)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_one_forward_pass_with_tangents_is_enough_for_ordinary_networks(
    kind: torch.dtype, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_needed(chunk: Any, vector: Any) -> Tensor:
        raise AssertionError("forward mode was not trusted")

    monkeypatch.setattr(_Chunk, "_tangent_of_reverse_mode", not_needed)
    torch.manual_seed(0)
    models = [
        thin_resnet(num_classes=5, in_channels=3, depth=8, width=4),
        vgg(num_classes=5, in_channels=3, depth=11, width=4),
    ]
    for model in models:
        pai.curvature_diagonal(
            model.to(kind), [(torch.randn(8, 3, 32, 32).to(kind), torch.arange(8) % 5)],
            "hutchinson", matrix="gauss_newton", temperature=temperature, num_probes=3,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
