"""Peak memory of scoring, against that of a plain backward pass over the same samples.

    python benchmarks/memory.py [--network resnet18] [--samples 100] [--methods snip grasp]

Every number comes from a process of its own, after one sample has been scored in it. On a CPU it
is the growth of the process's resident memory at its peak (Linux), on a GPU that of the memory
allocated for tensors. A plain pass is ``loss.backward()`` in eval mode. Columns:

- at once: growth when all samples are scored in one piece; in brackets with every tensor in a
  mapping of its own, which leaves out the C allocator's unused rest (the same on a GPU);
- to plain: weights plus growth, over the same of the plain pass;
- copies: what a further sample takes, in units of ``pai.memory.activation_bytes`` for one sample,
  from the bracketed growth for all samples and for half of them; in brackets, without them;
- in the budget: growth, and how many samples were scored at once, when ``--many`` samples are
  scored with ``pai.memory_budget(gib)``.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.environment import peak_memory_gib, reset_peak_memory
from pai.memory import CPU_GIB, activation_bytes
from pai.state import scoring_mode

MIB = 2**20
CLASSES = 10
Measured = dict[str, int]
Method = Callable[[nn.Module, list[tuple[Tensor, Tensor]]], Any]


def resnet18() -> tuple[nn.Module, int]:
    """Return pai's ResNet-18 for CIFAR and the side of its images."""
    from pai.models.resnet import resnet

    return resnet(num_classes=CLASSES, in_channels=3), 32


def resnet50() -> tuple[nn.Module, int]:
    """Return torchvision's ResNet-50 at random weights and the side of its images."""
    import torchvision

    return torchvision.models.resnet50(num_classes=CLASSES), 224


def vit_small() -> tuple[nn.Module, int]:
    """Return timm's ViT-S with 16 x 16 patches at random weights and the side of its images."""
    import timm

    return timm.create_model("vit_small_patch16_224", num_classes=CLASSES), 224


NETWORKS = {function.__name__: function for function in (resnet18, resnet50, vit_small)}


def plain_pass(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Take one forward and backward pass over each batch."""
    with scoring_mode(model):
        for inputs, targets in batches:
            F.cross_entropy(model(inputs), targets).backward()


def methods() -> dict[str, Method]:
    """Return what is measured; the first is what the others are compared with."""

    def diagonal(estimator: Any, **options: Any) -> Method:
        return lambda model, batches: pai.curvature_diagonal(
            model, batches, estimator=estimator, **options
        )

    def scorer(name: str) -> Method:
        method: Method = pai.load_scorer(name)
        return method

    return {
        "plain": plain_pass,
        "snip": scorer("snip"),
        "empirical_fisher": diagonal("empirical_fisher"),
        "fts": scorer("fts"),
        "mc_fisher": diagonal("mc_fisher"),
        "mc_fisher_4": diagonal("mc_fisher", num_draws=4),
        "exact_ggn": diagonal("exact_ggn"),
        "hutchinson": diagonal("hutchinson", num_probes=1),
        "hutchinson_3": diagonal("hutchinson", num_probes=3),
        "hutchinson_gn": diagonal("hutchinson", num_probes=1, matrix="gauss_newton"),
        "hutchinson_gn_3": diagonal("hutchinson", num_probes=3, matrix="gauss_newton"),
        "grasp": scorer("grasp"),
    }


def with_peak(work: Callable[[], Any], device: torch.device) -> tuple[Any, int]:
    """Return what ``work`` returns, and by how many bytes memory grew at its peak.

    On a GPU it is the memory of tensors, on a CPU the resident memory of the process.
    """
    gc.collect()
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work has freed would be taken again, unseen
    reset_peak_memory(device)
    before = peak_memory_gib(device)  # the peak so far: what is in use
    result = work()
    return result, round((peak_memory_gib(device) - before) * 2**30)


def measure_here(network: str, method: str, samples: int, gib: float, device: str) -> Measured:
    """Measure one method in this process, which should be new."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, side = NETWORKS[network]()
    model = model.to(device).eval()
    x = torch.randn(samples, 3, side, side, device=device)
    y = torch.arange(samples, device=device) % CLASSES
    work, most = methods()[method], [0]
    model.register_forward_pre_hook(lambda _, inputs: most.append(len(inputs[0])))
    work(model, [(x[:1], y[:1])])
    for parameter in model.parameters():
        parameter.grad = None
    with pai.memory_budget(gib):
        _, growth = with_peak(lambda: work(model, [(x, y)]), torch.device(device))
    return {
        "growth": growth,
        "samples_at_once": max(most),
        "per_sample": activation_bytes(model, x[:1]),
        "weights": sum(p.nbytes for p in model.parameters()),
    }


def measure(
    network: str, method: str, samples: int, gib: float, device: str, *, own_mappings: bool
) -> Measured:
    """Measure one method in a new process."""
    environment = dict(os.environ)
    if own_mappings:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    call = f"measure_here({network!r}, {method!r}, {samples}, {gib}, {device!r})"
    script = f"import json, memory; print(json.dumps(memory.{call}))"
    folder = str(Path(__file__).resolve().parent)
    path = os.pathsep.join(filter(None, [folder, environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment | {"PYTHONPATH": path},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    result: Measured = json.loads(done.stdout.splitlines()[-1])
    return result


@dataclass(frozen=True)
class Line:
    """What was measured of one method, in bytes except where it says otherwise."""

    resident: int
    tensors: int
    copies: float  # of the activations of one sample, for each sample
    rest: float
    in_budget: int
    at_once: int  # samples
    per_sample: int
    weights: int

    def cells(self, plain: "Line") -> list[str]:
        """Return the table's cells."""
        resident = (self.resident + self.weights) / (plain.resident + self.weights)
        tensors = (self.tensors + self.weights) / (plain.tensors + self.weights)
        return [
            f"{self.resident / MIB:.0f} ({self.tensors / MIB:.0f})",
            f"{resident:.2f} ({tensors:.2f})",
            f"{self.copies:.2f} ({self.rest / MIB:.0f} MiB)",
            f"{self.in_budget / MIB:.0f} in pieces of {self.at_once}",
        ]


def line(network: str, method: str, samples: int, many: int, gib: float, device: str) -> Line:
    """Measure one method in all ways."""
    everything = 2.0**20  # a budget that never splits
    run = partial(measure, network, method, device=device)
    resident = run(samples, everything, own_mappings=False)
    whole = run(samples, everything, own_mappings=True)
    half = run(samples // 2, everything, own_mappings=True)
    budget = run(many, gib, own_mappings=False) if method != "plain" else resident
    slope = (whole["growth"] - half["growth"]) / (samples - samples // 2)
    return Line(
        resident["growth"], whole["growth"], slope / whole["per_sample"],
        whole["growth"] - samples * slope, budget["growth"], budget["samples_at_once"],
        whole["per_sample"], whole["weights"],
    )  # fmt: skip


def main() -> None:
    """Parse the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", default="resnet18", choices=NETWORKS)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--many", type=int, help="samples for the last column, default the same")
    parser.add_argument("--methods", nargs="+", default=list(methods()), choices=methods())
    parser.add_argument("--gib", type=float, default=CPU_GIB, help="memory budget in GiB")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    many = arguments.many or arguments.samples
    network, common = arguments.network, (many, arguments.gib, arguments.device)
    plain = line(network, "plain", arguments.samples, *common)
    print(
        f"{network}, {arguments.samples} samples, {arguments.device}, torch {torch.__version__}; "
        f"weights {plain.weights / MIB:.0f} MiB, activations {plain.per_sample / MIB:.1f} MiB per "
        f"sample\n\n| method | at once, MiB | to plain | copies | {many} samples in "
        f"{arguments.gib:g} GiB, MiB |\n|---|---|---|---|---|"
    )
    print(f"| plain | {' | '.join(plain.cells(plain)[:-1])} | |", flush=True)
    for method in arguments.methods:
        if method != "plain":
            found = line(network, method, arguments.samples, *common)
            print(f"| {method} | {' | '.join(found.cells(plain))} |", flush=True)


if __name__ == "__main__":
    main()
