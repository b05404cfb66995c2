"""Curvature diagonals of other packages, for ``scoring.py``; each brought to a mean over samples.

Every function returns what its package computes for the loss summed or averaged over samples,
scaled to ``(1/N) sum_n``. Packages are imported inside, so that one that is missing or broken is
only missing from the table.
"""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import pai
from pai.models.resnet import BasicBlock, ResNet
from pai.models.vgg import VGG

Named = dict[str, Tensor]
Matrix = Literal["gauss_newton", "empirical_fisher"]
_AT_ONCE = 10  # samples where a package stores all their gradients: 45 MB each in ResNet-18
_AT_ONCE_PROBES = 20  # samples where a package multiplies with ten vectors in parallel


@dataclass(frozen=True)
class Row:
    """A line of the table: a method, and the matrix and temperature whose diagonal it is after."""

    name: str
    run: Callable[[], Named]
    matrix: Matrix
    temperature: float = 1.0


def peers(model: nn.Module, batches: Any, reference: Path | None) -> Iterator[Row]:
    """Yield the peers that are there."""
    yield Row("torch.func vmap(grad)", lambda: _vmap_fisher(model, batches), "empirical_fisher")
    if reference is not None:
        yield from _reference(model, batches, reference)
    if importlib.util.find_spec("backpack"):
        yield from _backpack(model, batches)
    if importlib.util.find_spec("curvlinops"):
        yield from _curvlinops(model, batches)


def _vmap_fisher(model: nn.Module, batches: Any) -> Named:
    """Empirical Fisher by ``vmap(grad)`` over samples."""
    parameters = {n: p.detach() for n, p in pai.prunable_parameters(model).items()}

    def loss(chosen: Named, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, chosen, (x[None],)), y[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    samples = 0
    for x, y in pieces(batches, _AT_ONCE):
        for name, value in per_sample(parameters, x, y).items():
            total[name] += value.square().sum(0)
        samples += len(y)
    return {name: value / samples for name, value in total.items()}


def pieces(batches: Any, size: int) -> "Loader":
    """Split batches further."""
    return Loader(
        pair
        for inputs, targets in batches
        for pair in zip(inputs.split(size), targets.split(size), strict=True)
    )


class Loader(list[Any]):
    """A list of batches with the attribute that the paper's code asks for."""

    @property
    def dataset(self) -> "Loader":
        """What ``len`` is asked of: with batches of one sample the list itself."""
        return self


def _reference(model: nn.Module, batches: Any, folder: Path) -> Iterator[Row]:
    """Yield the paper's public code: Fisher and Hutchinson diagonals at its batch size of one."""
    path = next(folder.rglob("compressors.py"))
    spec = importlib.util.spec_from_file_location("reference_compressors", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.tqdm = lambda data, **_: data  # type: ignore[attr-defined]
    loader, device = pieces(batches, 1), next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run(function: str, **options: Any) -> Named:
        result: Named = getattr(module, function)(
            model, device, loader, nn.CrossEntropyLoss(), optimizer, **options
        )
        optimizer.zero_grad()
        return result

    yield Row("paper's code fisher_diag, batch 1", lambda: run("fisher_diag"), "empirical_fisher")
    yield Row(
        "paper's code hutchinson_diag, batch 1, 1 probe, T=1",
        lambda: run("hutchinson_diag", num_samples=1, T=1),
        "gauss_newton",
    )


def _backpack(model: nn.Module, batches: Any) -> Iterator[Row]:
    """Yield BackPACK's diagonals."""
    from backpack import extensions

    def row(extension: Any, matrix: Matrix, **options: Any) -> Row:
        def run() -> Named:
            return _backpack_diagonal(model, batches, extension(**options))

        return Row(f"BackPACK {extension.__name__}", run, matrix)

    yield row(extensions.SumGradSquared, "empirical_fisher")
    yield row(extensions.DiagGGNMC, "gauss_newton", mc_samples=1)
    yield row(extensions.DiagGGNExact, "gauss_newton")
    yield row(extensions.DiagHessian, "gauss_newton")


def _backpack_diagonal(model: nn.Module, batches: Any, extension: Any) -> Named:
    """Apply an extension under the summed loss, so that its result is a sum over samples."""
    from backpack import backpack, extend

    model = copy.deepcopy(model)
    chain = extend(modules_only(model)).eval()
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))
    parameters = pai.prunable_parameters(model)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    samples = 0
    for x, y in pieces(batches, _AT_ONCE):
        with backpack(extension):
            loss(chain(x), y).backward()
        for name, parameter in parameters.items():
            total[name] += getattr(parameter, extension.savefield)
        samples += len(y)
    return {name: value / samples for name, value in total.items()}


def modules_only(model: nn.Module) -> nn.Sequential:
    """Return the same function of the same parameters as modules alone, which BackPACK needs.

    Its own converter does not get through these models under torch 2.15.

    Raises:
        TypeError: neither a VGG nor a ResNet of basic blocks.
    """
    if isinstance(model, VGG):
        return nn.Sequential(*model.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc)
    if not isinstance(model, ResNet):
        raise TypeError(f"no form as modules alone for {type(model).__name__}")
    blocks = [_block(block) for stage in model.stages.children() for block in stage.children()]
    stem = (model.conv1, model.bn1, nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc)


def _block(block: nn.Module) -> nn.Sequential:
    from backpack.custom_module.branching import Parallel

    if not isinstance(block, BasicBlock):
        raise TypeError(f"no form as modules alone for {type(block).__name__}")
    residual = (block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2)
    return nn.Sequential(Parallel(nn.Sequential(*residual), block.shortcut), nn.ReLU())


def _curvlinops(model: nn.Module, batches: Any) -> Iterator[Row]:
    """Yield curvlinops' estimators of diagonals, and the diagonal of its KFAC approximation.

    Its operators are those of the mean loss over all batches, as the loss here is a mean.
    """
    import curvlinops

    parameters = pai.prunable_parameters(model)
    data = pieces(batches, _AT_ONCE_PROBES)

    def operator(kind: Any, **options: Any) -> Any:
        return kind(
            model, nn.CrossEntropyLoss(), list(parameters.values()), data,
            check_deterministic=False, **options,
        )  # fmt: skip

    def probes(kind: Any, matrix: Matrix, estimator: Any = curvlinops.hutchinson_diag) -> Row:
        def run() -> Named:
            flat = estimator(operator(kind), num_matvecs=10)
            parts = flat.split([p.numel() for p in parameters.values()])
            return {n: v.view_as(p) for (n, p), v in zip(parameters.items(), parts, strict=True)}

        name = kind.__name__.removesuffix("LinearOperator")
        return Row(f"curvlinops {estimator.__name__}, {name}, 10 products", run, matrix)

    def kfac(fisher_type: str) -> Row:
        def run() -> Named:
            approximation = operator(curvlinops.KFACLinearOperator, fisher_type=fisher_type)
            approximation.compute_kronecker_factors()
            return _kronecker_diagonal(approximation.state_dict(), parameters)

        return Row(f"curvlinops KFAC, {fisher_type}: its diagonal", run, "gauss_newton")

    yield probes(curvlinops.GGNLinearOperator, "gauss_newton")
    yield probes(curvlinops.HessianLinearOperator, "gauss_newton")
    yield probes(curvlinops.EFLinearOperator, "empirical_fisher")
    yield probes(curvlinops.GGNLinearOperator, "gauss_newton", curvlinops.xdiag)
    yield kfac("mc")
    yield kfac("type-2")


def _kronecker_diagonal(state: dict[str, Any], parameters: Any) -> Named:
    """``diag(B (x) A) = diag(B) diag(A)^T`` for each layer, ``A`` of inputs, ``B`` of gradients."""
    result = {}
    for name, parameter in parameters.items():
        layer = name.removesuffix(".weight")
        outer = state["gradient_covariances"][layer].diagonal()
        inner = state["input_covariances"][layer].diagonal()
        result[name] = torch.outer(outer, inner).view_as(parameter)
    return result
