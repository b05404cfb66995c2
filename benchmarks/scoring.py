"""Time, error and memory of curvature diagonals; time in units of one batched gradient pass (G).

    python benchmarks/scoring.py [--model resnet18] [--samples 100] [--rounds 3] [--reference DIR]

Every round runs every method once, between two measurements of G whose mean is its unit, so that
ratios compare work done under the same load; the table shows medians over the rounds. Errors are
relative L2 distances to exact diagonals in float64, over all prunable weights: to that of the
matrix that the method is after, and to that of the Gauss-Newton matrix, which for these networks
is the Hessian's too. The last column is what a method added to the memory in use, at its peak.

Peers take part when they can be imported (BackPACK, curvlinops) or, with ``--reference``, from a
checkout of the paper's public code; one that fails says so in its line (``peers.py``).
"""

import argparse
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from memory import MIB, with_peak
from networks import build_network
from peers import Matrix, Named, Row, peers
from torch import nn

import pai
from pai.curvature import curved_parameters
from pai.library import available
from pai.objective import mean_gradient
from pai.reports.measures import relative_error
from pai.state import scoring_mode

_ESTIMATOR_OF: dict[Matrix, Any] = {
    "gauss_newton": "exact_ggn",
    "empirical_fisher": "empirical_fisher",
}


def problem(name: str, samples: int, size: int, device: torch.device) -> tuple[nn.Module, Any]:
    """Return a warmed-up CIFAR model and one batch of random images with ten classes."""
    torch.manual_seed(0)
    model = build_network(name, num_classes=10, channels=3, size=size, device=device)
    x = torch.randn(samples, 3, size, size, device=device)
    y = torch.arange(samples, device=device) % 10
    pai.warm_up_batchnorm(model, [(x, y)], statistics="population")
    return model.eval(), [(x, y)]


def own_rows(model: nn.Module, batches: Any) -> Iterator[Row]:
    """Yield pai's estimators."""

    def row(name: str, estimator: Any, goal: Matrix = "gauss_newton", **options: Any) -> Row:
        def run() -> Named:
            return pai.curvature_diagonal(model, batches, estimator=estimator, **options)

        return Row(f"pai {name}", run, goal, options.get("temperature", 1.0))

    yield row("empirical_fisher", "empirical_fisher", goal="empirical_fisher")
    yield row("mc_fisher, 1 draw", "mc_fisher")
    yield row("mc_fisher, 4 draws", "mc_fisher", num_draws=4)
    yield row("exact_ggn", "exact_ggn")
    yield row("hutchinson, hessian, 1 probe, T=1", "hutchinson", num_probes=1)
    for temperature in (1.0, 200.0):
        for matrix in ("hessian", "gauss_newton"):
            name = f"hutchinson, {matrix}, 10 probes, T={temperature:g}"
            yield row(name, "hutchinson", temperature=temperature, matrix=matrix)


def truth(model: nn.Module, batches: Any, matrix: Matrix, temperature: float) -> Named:
    """Return the exact diagonal in float64."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    exact = pai.curvature_diagonal(
        model.double(), [(x.double(), y) for x, y in batches],
        estimator=_ESTIMATOR_OF[matrix], temperature=temperature,
    )  # fmt: skip
    model.float().load_state_dict(state)
    return exact


def error_of(found: Named, exact: Named) -> float:
    """Return the relative L2 distance over all prunable weights."""
    ours, theirs = (
        torch.cat([values[name].detach().ravel().cpu() for name in exact]).numpy()
        for values in (found, exact)
    )
    return relative_error(ours, theirs)


@dataclass
class Line:
    """What was measured of one row: per round where it varies."""

    ratios: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    errors_to_ggn: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    failure: str = ""

    def cells(self) -> list[str]:
        """Return the table's cells."""
        if self.failure:
            return [f"failed: {self.failure}", "", "", ""]
        errors = [f"{statistics.median(v):.2g}" for v in (self.errors, self.errors_to_ggn)]
        ratio = f"{statistics.median(self.ratios):.2f}"
        return [ratio, *errors, f"{statistics.median(self.bytes) / MIB:.0f}"]


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return how long ``work`` took, the GPU's share included, and its result."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result


def measure(
    model: nn.Module, batches: Any, rows: list[Row], rounds: int, device: torch.device
) -> tuple[float, int, dict[str, Line]]:
    """Return G in seconds and bytes (medians), and what was measured of each row, by name."""
    parameters = pai.prunable_parameters(model, include_classifier=True)
    goals = {(row.matrix, row.temperature) for row in rows}
    goals |= {("gauss_newton", row.temperature) for row in rows}
    exact = {goal: truth(model, batches, *goal) for goal in sorted(goals)}
    lines = {row.name: Line() for row in rows}
    units, sizes = [], []

    def timed(work: Callable[[], Any]) -> tuple[float, Any, int]:
        (spent, result), grown = with_peak(lambda: seconds(work, device), device)
        return spent, result, grown

    def gradient_pass() -> Named:
        with scoring_mode(model):
            return mean_gradient(model, batches, parameters, None, 1.0)

    gradient_pass()
    for _ in range(rounds):
        before, _, size = timed(gradient_pass)
        units.append(before)
        sizes.append(size)
        for row in rows:
            line = lines[row.name]
            try:
                spent, found, grown = timed(row.run)
            except Exception as error:  # a peer that fails is a line of the table
                if row.name.startswith("pai "):
                    raise
                line.failure = one_line(error)
                continue
            after, _, _ = timed(gradient_pass)
            line.ratios.append(spent / ((before + after) / 2))
            line.errors.append(error_of(found, exact[row.matrix, row.temperature]))
            line.errors_to_ggn.append(error_of(found, exact["gauss_newton", row.temperature]))
            line.bytes.append(grown)
            print(f"  {row.name}: {spent:.1f} s, {', '.join(line.cells())}", file=sys.stderr)
            before = after
            units.append(after)
    return statistics.median(units), int(statistics.median(sizes)), lines


def one_line(error: Exception) -> str:
    """Return the type and the first line of the message, fit for a cell of a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}".replace("|", "/")


def main() -> None:
    """Parse the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
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
    rows = [*own_rows(model, batches), *peers(model, batches, arguments.reference)]
    rows = [row for row in rows if arguments.only in row.name]
    curved = curved_parameters(model, batches, pai.prunable_parameters(model))
    unit, size, lines = measure(model, batches, rows, arguments.rounds, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{arguments.model}, {arguments.samples} samples of 3x{arguments.size}x{arguments.size}, "
        f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()} processors, torch "
        f"{torch.__version__}, median of {arguments.rounds} rounds; G is {unit:.2f} s and "
        f"{size / MIB:.0f} MiB; the Hessian's diagonal is {'not ' if curved else ''}the "
        f"Gauss-Newton matrix's\n"
    )
    print("| method | time / G | error | error to Gauss-Newton | MiB |\n|---|---|---|---|---|")
    for name, line in lines.items():
        print(f"| {name} | {' | '.join(line.cells())} |")


if __name__ == "__main__":
    main()
