"""Images per second of masked training beside a plain loop, and what limits it.

    python benchmarks/training.py [--rounds 5] [--seconds 20] [--device cpu] [--skip compile]
    python benchmarks/training.py --accuracy digits|DIR [--epochs 15] [--model resnet20]

The plain loop is in `benchmarks/loops.py`. pai's own loop (`MaskedStep`, `Meter`, the bundle's
batches) trains the same network at 90 % sparsity on the same images under several options. Each
loop lives in a process of its own, pai's with the thread settings of the command ``pai``. Every
round runs every loop for some seconds after a warmup, so that ratios compare work done under the
same load; tables show medians over the rounds. The peaks are those of a large matrix product in
float32 and in bfloat16, measured in the same rounds.

With ``--accuracy`` both loops train the same masked networks completely, with the same recipe and
three seeds, on the digits or a folder of images.
"""

import os

if "plain" not in os.environ.get("PAI_BENCHMARK_LOOP", ""):
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as pai/cli.py does, before torch is loaded

import argparse
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from loops import (
    OPTIONS,
    Steps,
    make_mask,
    pai_steps,
    plain_steps,
    random_bundle,
    train_pai,
    train_plain,
)
from networks import build_network
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pai.data.bundle import DataBundle
from pai.library import available, load
from pai.training.masked import PrunedWeights

PLAIN, DEFAULT = "plain loop, float32", "pai float32"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def network(name: str, device: torch.device) -> nn.Module:
    """Return a model for the random images."""
    return build_network(name, num_classes=10, channels=3, size=32, device=device)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed(steps: Steps, seconds: float, device: torch.device) -> float:
    """Return images per second over at least ``seconds`` and two steps, after a warmup."""
    started = time.perf_counter()
    while time.perf_counter() - started < seconds / 4:
        next(steps)
        synchronize(device)
    images, count, started = 0, 0, time.perf_counter()
    while count < 2 or time.perf_counter() - started < seconds:
        images += next(steps)
        count += 1
    synchronize(device)
    return images / (time.perf_counter() - started)


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Return the median seconds of ``work``."""
    spent = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def gemm_flops(device: torch.device, dtype: torch.dtype, size: int = 0) -> float:
    """Return the FLOP/s of a large matrix product."""
    size = size or (2048 if device.type == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device)


def precision(name: str) -> str:
    """Return the precision in which a loop computes."""
    return str(OPTIONS.get(name, {}).get("precision", "float32"))


def step_flops(model: nn.Module, device: torch.device) -> float:
    """Return the FLOPs of forward and backward pass per image, by torch's counter."""
    x, y = torch.randn(2, 3, 32, 32, device=device), torch.zeros(2, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    model.zero_grad()
    return counter.get_total_flops() / 2


class Loop:
    """A loop in a process of its own that trains when asked to."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        environment = {**os.environ, "PAI_BENCHMARK_LOOP": name}
        if name == PLAIN:
            environment.pop("GOMP_SPINCOUNT")
        self._process = subprocess.Popen(
            [
                sys.executable, __file__, "--serve", name, "--model", arguments.model,
                "--batch-size", str(arguments.batch_size), "--device", arguments.device,
            ],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.speed(0)  # compiles

    def speed(self, seconds: float) -> float:
        """Train for some seconds and return the images per second."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate("")


def serve(name: str, arguments: argparse.Namespace, device: torch.device) -> None:
    """Read seconds from the standard input, train that long, write images per second."""
    data, size = random_bundle(20 * arguments.batch_size), arguments.batch_size
    model = network(arguments.model, device)
    if name != PLAIN:
        steps = pai_steps(model, data.to(device), size, OPTIONS[name])
    for line in sys.stdin:
        if name == PLAIN:  # its workers prefetch: they begin anew each time
            steps = plain_steps(model, data, size, device)
        print(speed(steps, float(line), device), flush=True)


def compare(arguments: argparse.Namespace, device: torch.device) -> None:
    """Measure speeds and print them, the cost of masking and a profile."""
    skipped = [word for word in arguments.skip.split(",") if word]
    names = [PLAIN, *(name for name in OPTIONS if not any(word in name for word in skipped))]
    loops = {name: Loop(name, arguments) for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, list[float]] = {name: [] for name in DTYPES}
    for _ in range(arguments.rounds):
        for dtype, found in peaks.items():
            found.append(gemm_flops(device, DTYPES[dtype]))
        for name, loop in loops.items():
            speeds[name].append(loop.speed(arguments.seconds))
    for loop in loops.values():
        loop.end()
    model = network(arguments.model, device)
    report_speeds(speeds, {name: statistics.median(p) for name, p in peaks.items()},
                  step_flops(model, device))  # fmt: skip
    step_s = arguments.batch_size / statistics.median(speeds[DEFAULT])
    report_masking(model, step_s, device)
    data = random_bundle(20 * arguments.batch_size).to(device)
    report_profile(pai_steps(model, data, arguments.batch_size, OPTIONS[DEFAULT]), device)


def report_speeds(
    speeds: dict[str, list[float]], peaks: dict[str, float], per_image: float
) -> None:
    """Print images per second and shares of the peaks (FLOP/s), at ``per_image`` FLOPs each."""
    shares = "share of the float32 peak | share of the peak of its precision"
    print(f"| loop | images/s | ratio to the plain loop | GFLOP/s | {shares} |")
    print("|---|---|---|---|---|---|")
    for name, found in speeds.items():
        pairs = zip(found, speeds[PLAIN], strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        rate = statistics.median(found)
        flops = rate * per_image
        print(
            f"| {name} | {rate:,.1f} | {ratio:.2f} | {flops / 1e9:,.0f} | "
            f"{flops / peaks['float32']:.0%} | {flops / peaks[precision(name)]:.0%} |"
        )
    told = ", ".join(f"{name} {peak / 1e9:,.0f}" for name, peak in peaks.items())
    print(f"\npeak GFLOP/s: {told}; {per_image / 1e9:.2f} GFLOPs per image and step")


def report_masking(model: nn.Module, step_s: float, device: torch.device) -> None:
    """Print what zeroing the pruned weights costs as share of a step."""
    model.to(memory_format=torch.channels_last)
    pruned = PrunedWeights(model, make_mask(model))
    spent = seconds_of(pruned.zero, device, repeats=50)
    print(f"masking {1e3 * spent:.2f} ms per step, {spent / step_s:.2%} of a float32 step")


KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("mkldnn_convolution", "cudnn_convolution", "thnn_conv"),
    "BatchNorm": ("batch_norm",),
    "ReLU, addition, pooling": ("clamp_min", "threshold", "relu", "mean", "pool"),
    "optimizer": ("_fused_sgd",),
    "masking": ("_foreach_mul_",),
    "copies": ("copy_", "contiguous", "clone"),
}


def report_profile(steps: Steps, device: torch.device) -> None:
    """Print the shares of the kinds of operations in three steps of pai's default."""
    for _ in range(2):
        next(steps)
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * cuda)]) as profiled:
        for _ in range(3):
            next(steps)
        synchronize(device)
    shares: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        names = (kind for kind, words in KINDS.items() if any(w in event.key for w in words))
        shares[next(names, "the rest")] += spent
    total = sum(shares.values())
    print("\n| operations of a float32 step | share |\n|---|---|")
    for kind, spent in shares.most_common():
        print(f"| {kind} | {spent / total:.1%} |")


def accuracies(arguments: argparse.Namespace, device: torch.device) -> None:
    """Train completely by both loops, three seeds each, and print the test accuracies."""
    if arguments.accuracy == "digits":
        data: DataBundle = load("dataset", "digits").load()
    else:
        data = load("dataset", "imagefolder", root=arguments.accuracy).load()
    channels, side = data.train.images.shape[1:3]
    size = arguments.batch_size
    chosen = {"pai float32": {}, "pai bfloat16": OPTIONS["pai bfloat16"]}
    rows: dict[str, list[float]] = {"plain loop, float32": [], **{name: [] for name in chosen}}
    for seed in range(3):
        for name, found in rows.items():
            torch.manual_seed(seed)
            model = build_network(
                arguments.model, num_classes=data.num_classes, channels=channels, size=side,
                device=device,
            )  # fmt: skip
            if name in chosen:
                found.append(train_pai(model, data, arguments.epochs, size, seed, chosen[name]))
            else:
                found.append(train_plain(model, data, arguments.epochs, size, device))
            print(f"{name}, seed {seed}: {found[-1]:.2%}", flush=True)
    print("\n| loop | test accuracy, % |\n|---|---|")
    for name, found in rows.items():
        spread = statistics.stdev(found)
        print(f"| {name} | {100 * statistics.mean(found):.2f} ± {100 * spread:.2f} (n=3) |")


def main() -> None:
    """Parse the command line, measure, print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18", choices=available("model"))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="per method and round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--skip", default="", help="leave out methods with these words, by comma")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--accuracy", help="digits, or a folder with train/ and test/")
    parser.add_argument("--epochs", type=int, default=15, help="of --accuracy")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(arguments.device)
    if arguments.serve:
        serve(arguments.serve, arguments, device)
        return
    print(
        f"{arguments.model}, batches of {arguments.batch_size}, {device}, "
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}\n"
    )
    (accuracies if arguments.accuracy else compare)(arguments, device)


if __name__ == "__main__":
    main()
