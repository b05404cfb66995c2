"""The fused kernel against autograd: interpreted on a CPU, compiled without a GPU, run on one.

The interpreter multiplies bfloat16 as integers and takes every float32 product in float32, so
bfloat16 and tf32 results are compared on a GPU only.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fused_cases
import pytest
import torch
from fused_cases import CASES, Case
from safetensors.torch import load_file
from tiny import python
from torch import Tensor, nn

from pai.curvature import fused

HALF = [
    replace(case, name=f"{case.name} bfloat16", dtype=torch.bfloat16)
    for case in CASES
    if case.columns > 1
]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
needs_compiler = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def agree(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        actual.double().cpu(), expected, rtol=10 * tolerance, atol=tolerance * scale
    )


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Results of all cases from a process in which triton interprets kernels."""
    folder = tmp_path_factory.mktemp("fused")
    done = python(fused_cases.__file__, "results.safetensors", cwd=folder, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    return load_file(folder / "results.safetensors")


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_interpreted_kernel_agrees_with_autograd(
    case: Case, interpreted: Mapping[str, Tensor]
) -> None:
    squares, sums = case.truth()
    agree(interpreted[f"{case.name}: squares"], squares)
    if case.with_sums:
        agree(interpreted[f"{case.name}: sums"], sums)


def compiled(capability: int, dtype: str, precision: str, tile: tuple[int, ...]) -> dict[str, Any]:
    """Return what triton makes of the kernel, by stage, for a GPU that need not be here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pai.curvature.fused_kernel import square_sum

    *blocks, warps = tile
    values = dict(zip(("BLOCK_O", "BLOCK_D", "BLOCK_L"), blocks, strict=True))
    constants: dict[str, Any] = {"SUMS": True, "PRECISION": precision, **values}
    types = {
        name: "constexpr" if name in constants
        else f"*{dtype}" if name in ("a_ptr", "x_ptr")
        else "*fp32" if name.endswith("_ptr") else "i32"
        for name in square_sum.arg_names
    }  # fmt: skip
    options = {"num_warps": warps, "num_stages": 3, "enable_fp_fusion": True}
    source = ASTSource(square_sum, types, constexprs=constants)
    asm: dict[str, Any] = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options=options
    ).asm
    return asm


@needs_triton
@needs_compiler
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("fp32", "ieee"), ("fp32", "tf32x3"), ("bf16", "ieee")],
)
def test_compiles_and_uses_matrix_units_where_asked(
    capability: int, dtype: str, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    units = (dtype, precision) != ("fp32", "ieee")
    tile = fused._tile(512, 4608, 16, matrix_units=units)
    asm = compiled(capability, dtype, precision, tile)
    assert bool(re.search(r"\bw?g?mma\.", asm["ptx"])) == units
    assert asm["cubin"]


@pytest.mark.parametrize(
    ("sizes", "units", "tile"),
    [
        ((1, 9, 1), True, (16, 16, 16, 4)),
        ((64, 27, 17), True, (64, 32, 32, 4)),
        ((65, 576, 1024), True, (128, 64, 32, 8)),
        ((512, 4608, 16), False, (64, 64, 16, 4)),
    ],
)
def test_tiles_are_powers_of_two_that_cover_small_layers(
    sizes: tuple[int, int, int], units: bool, tile: tuple[int, ...]
) -> None:
    assert fused._tile(*sizes, matrix_units=units) == tile


def test_importable_and_unsupported_without_triton(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "from pai.curvature import fused; print(fused._triton_is_installed())"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.stdout.strip() == "False", done.stderr


def test_other_dtypes_are_refused() -> None:
    u = fused.patches(nn.Linear(3, 2), torch.zeros(1, 4, 3))
    squares = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=r"got torch\.float64 and torch\.float32"):
        fused.fused_square_sum(torch.zeros(1, 1, 1, 2, 4).double(), u, squares)
    assert not fused.supports(torch.zeros(1, 1, 1, 2, 4), u)  # too few rows
    assert not fused.available(torch.device("cpu"))


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize("case", [*CASES, *HALF], ids=lambda case: case.name)
def test_gpu_agrees_with_autograd(case: Case) -> None:
    squares, sums = case.truth()
    found, found_sums = case.run("cuda")
    agree(found, squares)
    if found_sums is not None:
        agree(found_sums, sums)


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize(("precision", "tolerance"), [("tf32x3", 1e-5), ("tf32", 3e-3)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gpu_matrix_units(case: Case, precision: fused.Precision, tolerance: float) -> None:
    squares, _ = case.truth()
    found, _ = case.run("cuda", precision)
    agree(found, squares, tolerance)


@pytest.mark.gpu
@needs_gpu
@needs_triton
def test_gpu_factors_that_are_supported() -> None:
    capable = torch.cuda.get_device_capability() >= (8, 0)
    a, x = torch.zeros(1, 1, 1, 16, 4, device="cuda"), torch.zeros(1, 4, 16, device="cuda")
    layer = nn.Linear(16, 16)
    assert fused.available(a.device) == capable
    assert fused.supports(a, fused.patches(layer, x))
    assert not fused.supports(a.half(), fused.patches(layer, x))
    assert not fused.supports(a.double(), fused.patches(layer, x.double()))
    assert not fused.supports(a[..., :1], fused.patches(layer, x[:, :1]))
    assert not fused.supports(a[..., :15, :], fused.patches(layer, x))


BIG = Case("big", lambda: nn.Conv2d(64, 130, 3, padding=1), (64, 17, 15), samples=9, columns=3)


@pytest.mark.gpu
@needs_gpu
@needs_triton
def test_gpu_is_bitwise_reproducible() -> None:
    first, _ = BIG.run("cuda")
    agree(first, BIG.truth()[0])
    for _ in range(5):
        assert torch.equal(BIG.run("cuda")[0], first)


@pytest.mark.gpu
@needs_gpu
@needs_triton
def test_gpu_reads_beyond_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB of GPU memory")
    step = 2**30 + 64  # fits into 32 bits, twice the step does not
    memory = torch.empty(2 * step + 1024, dtype=torch.float16, device="cuda")
    x = memory.as_strided((3, 1, 7, 1, 5), (step, 35, 5, 5, 1)).normal_()
    a = torch.randn(3, 1, 1, 6, 5, dtype=torch.float16, device="cuda")
    squares = torch.zeros(1, 6, 7, device="cuda")
    fused.fused_square_sum(a, fused.Patches(x), squares)
    product = a[:, 0, 0].double() @ x[:, 0, :, 0].double().mT
    agree(squares[0], product.square().sum(0).cpu())


WHOLE_ESTIMATOR = """
import sys, torch
from safetensors.torch import save_file
from torch import nn
import pai
from pai.curvature import recording
from pai.models.resnet import thin_resnet


class Cross(nn.Module):
    \"\"\"Attention whose projection is used in parts, behind a grouped convolution.\"\"\"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 32, 3, padding=1, stride=2, groups=2)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x.tanh(), x.tanh(), need_weights=False)[0].mean(1))


torch.manual_seed(0)
resnet = thin_resnet(num_classes=4, in_channels=2, depth=8, width=16)
networks = {"resnet": resnet, "cross": Cross()}
batches = [(torch.randn(3, 2, 8, 8), torch.tensor([0, 1, 3]))]
pai.warm_up_batchnorm(resnet, batches)
calls, wanted = [], {"float32": "ieee", "tf32": "tf32"}
def counted(a, u, squares, gradients, precision):
    calls.append(a.shape)
    assert precision == wanted[chosen], precision
    fused(a, u, squares, gradients, precision=precision)
fused, recording.fused_square_sum = recording.fused_square_sum, counted
results = {}
for place in ("portable", "kernel"):
    for kind, model in networks.items():
        for estimator, chosen in (
            ("empirical_fisher", "float32"), ("empirical_fisher", "tf32"), ("exact_ggn", "float32"),
        ):
            with pai.scoring_precision(chosen):
                found = pai.curvature_diagonal(model, batches, estimator=estimator)
            for name, value in found.items():
                results[f"{place} {kind} {estimator} {chosen} {name}"] = value
    assert bool(calls) == (place == "kernel"), calls
    recording.available = lambda device: device.type == "cpu"
save_file(results, sys.argv[1])
"""


@pytest.mark.slow
@needs_triton
def test_estimators_through_the_interpreted_kernel_agree_with_the_portable_path(
    tmp_path: Path,
) -> None:
    done = python("-c", WHOLE_ESTIMATOR, "out.safetensors", cwd=tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert "per-sample rule" not in done.stderr
    results = load_file(tmp_path / "out.safetensors")
    portable = {key: value for key, value in results.items() if key.startswith("portable")}
    for key, value in portable.items():
        agree(results[key.replace("portable", "kernel")], value.double())
