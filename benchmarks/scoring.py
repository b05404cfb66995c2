"""Time and error of curvature diagonals, in units of one batched gradient pass (G).

    python benchmarks/scoring.py [--model resnet18] [--samples 100] [--rounds 3] [--reference DIR]

Every round times G and then every method once, so that ratios compare work done under the same
load; the table shows medians over the rounds. The error is the relative L2 distance to the exact
GGN diagonal in float64 (which is the Hessian's for these networks). Peers are included when they
can be imported (curvlinops) or, with ``--reference``, from a checkout of the paper's public code.
"""

import argparse
import importlib.util
import math
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import pai
from pai.components import build
from pai.library import available
from pai.objective import mean_gradient
from pai.state import scoring_mode

Named = dict[str, Tensor]
Method = Callable[[], Named]


def problem(name: str, samples: int, size: int, device: torch.device) -> tuple[nn.Module, Any]:
    """Return a warmed-up CIFAR model and one batch of random images with ten classes."""
    from omegaconf import OmegaConf

    from pai.paths import config_folder

    torch.manual_seed(0)
    node: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / "model" / f"{name}.yaml"))
    model: nn.Module = build("model", node)(num_classes=10, in_channels=3).to(device)
    x = torch.randn(samples, 3, size, size, device=device)
    y = torch.arange(samples, device=device) % 10
    pai.warm_up_batchnorm(model, [(x, y)], statistics="population")
    return model.eval(), [(x, y)]


def own_methods(model: nn.Module, batches: Any) -> dict[str, Method]:
    """Return pai's estimators."""

    def method(estimator: Any, **options: Any) -> Method:
        return lambda: pai.curvature_diagonal(model, batches, estimator=estimator, **options)

    return {
        "pai empirical_fisher": method("empirical_fisher"),
        "pai mc_fisher, 1 draw": method("mc_fisher"),
        "pai mc_fisher, 4 draws": method("mc_fisher", num_draws=4),
        "pai exact_ggn": method("exact_ggn"),
        "pai hutchinson, 1 probe, T=1": method("hutchinson", num_probes=1),
        "pai hutchinson, 10 probes, T=1": method("hutchinson", num_probes=10),
    }


def peer_methods(model: nn.Module, batches: Any, reference: Path | None) -> dict[str, Method]:
    """Return the peers that are there; each computes its own version of a diagonal."""
    peers: dict[str, Method] = {"torch.func vmap(grad)": lambda: vmap_fisher(model, batches)}
    if reference is not None:
        peers |= reference_methods(model, batches, reference)
    if importlib.util.find_spec("curvlinops"):
        peers["curvlinops Hutchinson, 10 probes"] = lambda: curvlinops_diagonal(model, batches)
    return peers


def vmap_fisher(model: nn.Module, batches: Any) -> Named:
    """Empirical Fisher by ``vmap(grad)`` over samples, ten at a time."""
    parameters = {n: p.detach() for n, p in pai.prunable_parameters(model).items()}

    def loss(chosen: Named, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, chosen, (x[None],)), y[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    samples = 0
    for inputs, targets in batches:
        for x, y in zip(inputs.split(10), targets.split(10), strict=True):
            for name, value in per_sample(parameters, x, y).items():
                total[name] += value.square().sum(0)
        samples += len(targets)
    return {name: value / samples for name, value in total.items()}


class _Loader(list[Any]):
    """A list of single-sample batches with the attribute the reference code asks for."""

    @property
    def dataset(self) -> "_Loader":
        return self


def reference_methods(model: nn.Module, batches: Any, folder: Path) -> dict[str, Method]:
    """Return the paper's public code: Fisher and Hutchinson diagonals at its batch size of one."""
    path = next(folder.rglob("compressors.py"))
    spec = importlib.util.spec_from_file_location("reference_compressors", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.tqdm = lambda data, **_: data  # type: ignore[attr-defined]
    loader = _Loader(
        (x, y)
        for inputs, targets in batches
        for x, y in zip(inputs.split(1), targets.split(1), strict=True)
    )
    device, loss = next(model.parameters()).device, nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def method(function: str, **options: Any) -> Method:
        def run() -> Named:
            result: Named = getattr(module, function)(
                model, device, loader, loss, optimizer, **options
            )
            optimizer.zero_grad()
            return result

        return run

    return {
        "paper's code fisher_diag, batch 1": method("fisher_diag"),
        "paper's code hutchinson_diag, batch 1, 1 probe, T=1": method(
            "hutchinson_diag", num_samples=1, T=1
        ),
    }


def curvlinops_diagonal(model: nn.Module, batches: Any) -> Named:
    """Hutchinson's diagonal of curvlinops' GGN operator."""
    from curvlinops import GGNLinearOperator, hutchinson_diag

    parameters = pai.prunable_parameters(model)
    operator = GGNLinearOperator(
        model, nn.CrossEntropyLoss(), list(parameters.values()), batches,
        check_deterministic=False,
    )  # fmt: skip
    flat = torch.as_tensor(hutchinson_diag(operator, num_matvecs=10))
    parts = flat.split([p.numel() for p in parameters.values()])
    return {n: part.view_as(p) for (n, p), part in zip(parameters.items(), parts, strict=True)}


def truth(model: nn.Module, batches: Any) -> Named:
    """Return the exact GGN diagonal in float64."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    exact = pai.curvature_diagonal(
        model.double(), [(x.double(), y) for x, y in batches], estimator="exact_ggn"
    )
    model.float().load_state_dict(state)
    return exact


def relative_error(found: Named, exact: Named) -> float:
    """Return ``||found - exact|| / ||exact||`` over all prunable weights."""
    gap = sum(float((found[name].double() - exact[name]).square().sum()) for name in exact)
    norm = sum(float(value.square().sum()) for value in exact.values())
    return (gap / norm) ** 0.5


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long ``work`` took, the GPU's share included, and its result."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def measure(
    model: nn.Module, batches: Any, methods: dict[str, Method], rounds: int
) -> Iterator[tuple[str, float, float]]:
    """Yield (method, median time in G, error), and first G itself in seconds."""
    parameters = pai.prunable_parameters(model, include_classifier=True)

    def gradient_pass() -> Named:
        with scoring_mode(model):
            return mean_gradient(model, batches, parameters, None, 1.0)

    exact = truth(model, batches)
    gradient_pass()
    units: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in methods}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        unit = statistics.median(seconds(gradient_pass)[0] for _ in range(3))
        units.append(unit)
        for name, method in methods.items():
            spent, found = seconds(method)
            ratios[name].append(spent / unit)
            errors[name] = relative_error(found, exact)
            print(f"  {name}: {spent / unit:.2f} G", file=sys.stderr)
    yield "one gradient pass, seconds", statistics.median(units), float("nan")
    for name in methods:
        yield name, statistics.median(ratios[name]), errors[name]


def main() -> None:
    """Parse the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18", choices=available("model"))
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reference", type=Path, help="checkout of the paper's public code")
    parser.add_argument("--only", default="", help="only methods whose name contains this")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(arguments.device)
    model, batches = problem(arguments.model, arguments.samples, arguments.size, device)
    methods = own_methods(model, batches) | peer_methods(model, batches, arguments.reference)
    methods = {name: method for name, method in methods.items() if arguments.only in name}
    print(
        f"{arguments.model}, {arguments.samples} samples of 3x{arguments.size}x{arguments.size}, "
        f"{device}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}, median of {arguments.rounds} rounds\n"
    )
    print("| method | time / G | relative error |\n|---|---|---|")
    for name, ratio, error in measure(model, batches, methods, arguments.rounds):
        print(f"| {name} | {ratio:.2f} | {'' if math.isnan(error) else f'{error:.2g}'} |")


if __name__ == "__main__":
    main()
