"""Time of the sums of squared per-sample gradients of ResNet-18's layers on a GPU.

    python benchmarks/gpu_products.py [--samples 100] [--columns 1] [--rounds 20]

The portable path makes patches and products in memory, the fused kernel neither. Both take float32
factors; times are medians in milliseconds, rates count ``2 B K O D L`` operations, errors are
relative to the portable path in float64.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pai.curvature import fused
from pai.curvature.products import add_products
from pai.curvature.rules import RULES

# how often, input channels, output channels, kernel, stride, side of the input: 32 x 32 images
LAYERS = [
    (1, 3, 64, 3, 1, 32), (4, 64, 64, 3, 1, 32),
    (1, 64, 128, 3, 2, 32), (1, 64, 128, 1, 2, 32), (3, 128, 128, 3, 1, 16),
    (1, 128, 256, 3, 2, 16), (1, 128, 256, 1, 2, 16), (3, 256, 256, 3, 1, 8),
    (1, 256, 512, 3, 2, 8), (1, 256, 512, 1, 2, 8), (3, 512, 512, 3, 1, 4),
]  # fmt: skip
PRECISIONS: tuple[fused.Precision, ...] = ("ieee", "tf32x3", "tf32")


def portable(conv: nn.Conv2d, x: Tensor, gradients: Tensor) -> Tensor:
    """Return the sum of squares ``[1, O, D]`` for gradients ``[B, K, O, OH, OW]``."""
    squares = x.new_zeros(1, conv.weight.shape[0], conv.weight[0].numel())
    rule, first = RULES[nn.Conv2d], gradients[:, 0]
    outer = torch.stack([rule.outer(conv, x, grad) for grad in gradients.unbind(1)], dim=2)
    add_products(outer, rule.inner(conv, x, first), squares, None)
    return squares


def by_kernel(conv: nn.Conv2d, x: Tensor, gradients: Tensor, precision: fused.Precision) -> Tensor:
    """Return the same from the fused kernel, the padding of the input included."""
    squares = x.new_zeros(1, conv.weight.shape[0], conv.weight[0].numel())
    rows = gradients.flatten(3).unsqueeze(2)
    fused.fused_square_sum(rows, fused.patches(conv, x), squares, precision=precision)
    return squares


def milliseconds(work: Callable[[], Tensor], rounds: int) -> float:
    """Return the median time of one call after three to warm up."""
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def measure(layer: tuple[int, ...], samples: int, columns: int, rounds: int) -> list[float]:
    """Print a layer's row and return its operations and times, for all layers of its kind."""
    count, inputs, outputs, kernel, stride, side = layer
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False).cuda()
    x = torch.randn(samples, inputs, side, side, device="cuda")
    out = side // stride
    gradients = torch.randn(columns, samples, outputs, out, out, device="cuda").transpose(0, 1)
    truth = portable(conv, x.double(), gradients.double())
    works: list[Callable[[], Tensor]] = [lambda: portable(conv, x, gradients)]
    works += [lambda p=p: by_kernel(conv, x, gradients, p) for p in PRECISIONS]  # type: ignore[misc]
    operations = 2.0 * samples * columns * conv.weight.numel() * out**2
    cells, times = [], []
    for work in works:
        error = float((work() - truth).norm() / truth.norm())
        times.append(milliseconds(work, rounds))
        cells.append(f"{times[-1]:.3f} ({operations / times[-1] / 1e9:.1f}; {error:.0e})")
    name = f"{count} x {inputs}-{outputs}, {kernel}x{kernel}/{stride}, {side}x{side}"
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return [count * value for value in (operations, *times)]


def main() -> None:
    """Parse the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--columns", type=int, default=1, help="gradients per sample, as of a GGN")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_products measures on a CUDA device, and torch sees none here")
    torch.manual_seed(0)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.samples} samples, "
        f"{arguments.columns} columns, median of {arguments.rounds} rounds\n"
    )
    print("| layer | portable: ms (TFLOP/s; error) | " + " | ".join(PRECISIONS) + " |")
    print("|---" * (len(PRECISIONS) + 2) + "|")
    rows = [
        measure(layer, arguments.samples, arguments.columns, arguments.rounds) for layer in LAYERS
    ]
    operations, *times = (sum(column) for column in zip(*rows, strict=True))
    cells = (f"{time:.3f} ({operations / time / 1e9:.1f})" for time in times)
    print(f"| all | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
