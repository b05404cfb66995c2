"""Remove the channels of a finished run that cannot influence its output, and export what is left.

    python scripts/compact.py RUN_DIR [--out DIR] [--batch-size 128] [--seconds 5] [--onnx]

Rebuilds the network of RUN_DIR from its record, loads its weights, compacts it (pai.compact) and
checks that the outputs are the same. DIR (default RUN_DIR/compact) gets ``sparse.safetensors``, the
whole network without its zeros (pai.load_sparse), ``compact.pt2``, the compacted network for
``torch.export.load``, and ``report.json``; with ``--onnx`` (extra ``pai[onnx]``) also
``compact.onnx``, run once by onnxruntime. Times are of forward passes in turn, one of each: the
network of the run, the same rewritten as compaction does but with all channels, the compacted one.
"""

import argparse
import copy
import importlib.util
import io
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import pai
from pai.data.bundle import DataSpec
from pai.errors import ConfigError
from pai.export.compact import ConstantOutput, PlusMap
from pai.flops import forward_cost
from pai.identity import completed
from pai.output import MODEL_FILE
from pai.plan import prepare
from pai.records import read_run, write_bytes_atomically

EXPORTED_FILE = "compact.pt2"
TOLERANCE = 1e-4  # relative to the largest output; float32 rounding is some 1e-6


def rebuild(run_dir: Path) -> tuple[nn.Module, DataSpec]:
    """Return the trained network of a run in eval mode, and what its data look like.

    Raises:
        ConfigError: the folder holds no completed run.
    """
    record = read_run(run_dir)
    if record is None or record["status"] != "completed":
        raise ConfigError(f"{run_dir} holds no completed run")
    plan = prepare(completed(record["config"]) | {"device": "cpu"})
    if not isinstance(plan.spec, DataSpec):
        raise ConfigError(f"{run_dir} holds a run on {plan.spec.task.data}; images are needed")
    model = plan.build_model()
    model.load_state_dict(load_file(run_dir / MODEL_FILE))
    return model.eval(), plan.spec


def seconds_in_turn(
    models: list[nn.Module], inputs: torch.Tensor, seconds: float
) -> list[list[float]]:
    """Time forward passes of the models in turn for ``seconds``, at least 5 of each."""
    times: list[list[float]] = [[] for _ in models]
    begin = time.perf_counter()
    with torch.no_grad():
        for model in models:
            model(inputs)
        while time.perf_counter() - begin < seconds or len(times[0]) < 5:
            for model, taken in zip(models, times, strict=True):
                start = time.perf_counter()
                model(inputs)
                taken.append(time.perf_counter() - start)
    return times


def without_zeros(model: nn.Module) -> nn.Module:
    """Return a copy in which no weight is zero, so that compaction removes nothing from it."""
    full = copy.deepcopy(model)
    with torch.no_grad():
        for weight in full.parameters():
            weight[weight == 0] = 1e-3
    return full


def export(model: nn.Module, inputs: torch.Tensor, path: Path) -> float:
    """Write ``model`` for any batch size, load it again and return its largest deviation."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (inputs,), dynamic_shapes=({0: batch},), strict=False)
    content = io.BytesIO()
    torch.export.save(program, content)
    write_bytes_atomically(path, content.getvalue())
    content.seek(0)
    loaded = torch.export.load(content).module()
    with torch.no_grad():
        return float((loaded(inputs[:3]) - model(inputs[:3])).abs().max())


def export_onnx(model: nn.Module, inputs: torch.Tensor, path: Path) -> float:
    """Write ``model`` as ONNX for any batch size; return onnxruntime's largest deviation."""
    import onnxruntime

    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        model, (inputs,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False,
        input_names=["input"], output_names=["logits"],
    )  # fmt: skip
    assert program is not None, "None is what exporting to a file returns"
    content = program.model_proto.SerializeToString()
    write_bytes_atomically(path, content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": inputs[:3].numpy()})
    with torch.no_grad():
        return float((torch.from_numpy(found) - model(inputs[:3])).abs().max())


def channels(model: nn.Module) -> int:
    """Return the output channels of all convolutions."""
    return sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))


def constants(model: nn.Module) -> int:
    """Return how many numbers a compacted network adds or gives that are no parameters.

    They stand for channels that are constant but not the same everywhere: maps of the size of a
    layer's output.
    """
    maps = (m for m in model.modules() if isinstance(m, PlusMap | ConstantOutput))
    return sum(held.numel() for m in maps for held in m.buffers(recurse=False))


def examine(
    run_dir: Path, out: Path, batch_size: int, seconds: float, *, onnx: bool
) -> dict[str, Any]:
    """Compact, check, time and export; return what was found.

    Raises:
        ConfigError: no completed run.
        ValueError: the network cannot be compacted.
    """
    model, spec = rebuild(run_dir)
    stream = torch.Generator().manual_seed(0)
    size = (batch_size, spec.channels, spec.height, spec.width)
    inputs = torch.randn(size, generator=stream)
    small = pai.compact(model, inputs)
    with torch.no_grad():
        expected, found = model(inputs), small(inputs)
    deviation = float((expected - found).abs().max())
    if deviation > TOLERANCE * max(1.0, float(expected.abs().max())):
        raise AssertionError(f"compaction changed the outputs by {deviation}")
    out.mkdir(parents=True, exist_ok=True)
    rewritten = pai.compact(without_zeros(model), inputs)
    times = seconds_in_turn([model, rewritten, small], inputs, seconds)
    ratios = [a / b for a, _, b in zip(*times, strict=True)]
    costs = [forward_cost(network, {}, inputs) for network in (model, small)]
    report = {
        "largest_output": float(expected.abs().max()),
        "largest_deviation": deviation,
        "channels": [channels(network) for network in (model, small)],
        "parameters": [cost.parameters_dense for cost in costs],
        "constants": constants(small),
        "forward_flops": [cost.forward_flops_dense for cost in costs],
        "batch_size": batch_size,
        "forward_s": [statistics.median(taken) for taken in (times[0], times[2])],
        "speed_up": statistics.median(ratios),
        "speed_up_rewritten": statistics.median(a / b for a, b, _ in zip(*times, strict=True)),
        "speed_up_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "timed_pairs": len(ratios),
        "model_bytes": (run_dir / MODEL_FILE).stat().st_size,
        "sparse_bytes": pai.save_sparse(model, out / "sparse.safetensors"),
        "exported_deviation": export(small, inputs, out / EXPORTED_FILE),
        "exported_bytes": (out / EXPORTED_FILE).stat().st_size,
    }
    if onnx:
        report["onnx_deviation"] = export_onnx(small, inputs, out / "compact.onnx")
    write_bytes_atomically(out / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    return report


def describe(report: dict[str, Any]) -> str:
    """Return the report as text."""
    (before, after), (flops, fewer) = report["parameters"], report["forward_flops"]
    (wide, narrow), images = report["channels"], report["batch_size"]
    slow, fast = (f"{taken / images * 1e6:,.1f}" for taken in report["forward_s"])
    low, high = report["speed_up_quartiles"]
    return "\n".join(
        (
            f"outputs     differ by at most {report['largest_deviation']:.1e}; the largest is "
            f"{report['largest_output']:.3g}",
            f"channels    {wide:,} -> {narrow:,} of convolutions ({wide - narrow:,} removed)",
            f"parameters  {before:,} -> {after:,} ({after / before:.1%})"
            + f" + {report['constants']:,} constants" * bool(report["constants"]),
            f"MFLOPs      {flops / 1e6:,.2f} -> {fewer / 1e6:,.2f} per image ({fewer / flops:.1%})",
            f"time        {slow} -> {fast} microseconds per image",
            f"speed-up    {report['speed_up']:.2f} (quartiles {low:.2f} to {high:.2f}, "
            f"{report['timed_pairs']} pairs of forward passes of {images} images); "
            f"{report['speed_up_rewritten']:.2f} if no channel is removed",
            f"bytes       {report['model_bytes']:,} -> {report['sparse_bytes']:,} without zeros, "
            f"{report['exported_bytes']:,} exported (with code)",
            f"exported    outputs differ by at most {report['exported_deviation']:.1e}",
            *(
                f"ONNX        outputs differ by at most {found:.1e} in onnxruntime"
                for found in (report.get("onnx_deviation"),)
                if found is not None
            ),
        )
    )


def main() -> None:
    """Parse the command line, compact and print; exit 1 with one line if it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run_dir", type=Path, help="directory of a completed run")
    parser.add_argument("--out", type=Path, help="default: RUN_DIR/compact")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to time")
    parser.add_argument("--onnx", action="store_true", help="write compact.onnx too")
    arguments = parser.parse_args()
    run_dir = arguments.run_dir
    missing = [m for m in ("onnxruntime", "onnxscript") if importlib.util.find_spec(m) is None]
    if arguments.onnx and missing:
        sys.exit(f"compact error: --onnx needs {missing[0]}: pip install 'pai[onnx]'")
    try:
        report = examine(
            run_dir, arguments.out or run_dir / "compact", arguments.batch_size,
            arguments.seconds, onnx=arguments.onnx,
        )  # fmt: skip
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(f"compact error: {error}")
    print(describe(report))


if __name__ == "__main__":
    main()
