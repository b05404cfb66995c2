"""What one round of each scorer costs, in units of one gradient pass over the same samples.

``python benchmarks/methods.py`` prints a Markdown table. Every scorer is timed between two gradient
passes G, and its time is given as a multiple of their mean, so that a machine that slows down or
speeds up changes little. ``times rounds`` is that multiple for all rounds of the method's default
schedule.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from networks import build_network

import pai
from pai.library import available
from pai.objective import mean_gradient
from pai.state import scoring_mode

SAME_COST = {"none", *(f"{family}{form}" for family in "fhgm" for form in "dp")}
"""Left out: what costs nothing, and of each curvature family all but the formula with ``ts``."""


def seconds(function: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet20", choices=available("model"))
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1, help="measurements; the median counts")
    parser.add_argument("--only", default="", help="only scorers whose name contains this")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build_network(arguments.model, num_classes=10, channels=3, size=32, device=device)
    x = torch.randn(arguments.samples, 3, 32, 32, device=device)
    batches = [(x, torch.arange(arguments.samples, device=device) % 10)]
    pai.warm_up_batchnorm(model, batches)
    parameters = pai.prunable_parameters(model)

    def gradient_pass() -> None:
        with scoring_mode(model):
            mean_gradient(model, batches, parameters, None, 1.0)

    for _ in range(2):
        gradient_pass()
    names = [name for name in pai.available_scorers() if arguments.only in name]
    names = [name for name in names if name not in SAME_COST]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    units = []
    for _ in range(arguments.rounds):
        before = seconds(gradient_pass)
        for name in names:
            scorer, stream = pai.load_scorer(name), torch.Generator(device).manual_seed(0)
            spent = seconds(lambda: scorer(model, batches, generator=stream))  # noqa: B023
            after = seconds(gradient_pass)
            ratios[name].append(2 * spent / (before + after))
            units.append(after)
            before = after
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(
        f"{arguments.model}, {arguments.samples} samples of 3x32x32, {where}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of "
        f"{arguments.rounds}; G is {statistics.median(units):.3f} s\n"
    )
    print("| scorer | G per round | rounds | times rounds |\n|---|---|---|---|")
    for name, found in ratios.items():
        ratio, schedule = statistics.median(found), pai.default_schedule(name)
        rounds = len(schedule.sparsities(0.9))
        print(f"| `{name}` | {ratio:.2f} | {rounds} | {rounds * ratio:.0f} |")


if __name__ == "__main__":
    main()
