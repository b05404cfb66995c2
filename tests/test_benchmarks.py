import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHECKOUT, python
from torch import Tensor, nn

import pai
from pai.models.resnet import thin_resnet
from pai.models.vgg import vgg

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a module of the folder ``benchmarks`` by name."""
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    yield importlib.import_module


@pytest.fixture
def problem() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return a small model in eval mode and a batch of twelve samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = thin_resnet(num_classes=4, in_channels=1, depth=8, width=4).eval()
        return model, [(torch.randn(12, 1, 8, 8), torch.randint(0, 4, (12,)))]


linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks of a process are measured on Linux"
)


PEAKS = """
import torch
from memory import MIB, with_peak

def allocate():
    for _ in range(3):
        torch.ones(50 * MIB, dtype=torch.uint8)
    return 7

print(*with_peak(allocate, torch.device("cpu")))
kept, growth = with_peak(lambda: torch.ones(20 * MIB, dtype=torch.uint8), torch.device("cpu"))
print(kept.sum().item(), growth)
"""


@linux
def test_the_peak_is_that_of_memory_in_use_at_once() -> None:
    done = python("-c", PEAKS, cwd=CHECKOUT / "benchmarks")
    assert done.returncode == 0, done.stderr
    (result, growth), (ones, growth_of_kept) = (
        (int(number) for number in line.split()) for line in done.stdout.splitlines()
    )
    assert (result, ones) == (7, 20 * MIB)
    assert 48 * MIB <= growth < 75 * MIB
    assert 18 * MIB <= growth_of_kept < 35 * MIB


@linux
@pytest.mark.slow
def test_a_backward_pass_takes_its_activations(benchmark: Any) -> None:
    memory = benchmark("memory")
    some, more = (
        memory.measure("resnet18", "plain", n, 1000.0, "cpu", own_mappings=True) for n in (4, 12)
    )
    assert more["samples_at_once"] == 12
    slope = (more["growth"] - some["growth"]) / 8
    assert 0.7 * more["per_sample"] < slope < 1.5 * more["per_sample"]


def test_vmap_finds_the_empirical_fisher(benchmark: Any, problem: Any) -> None:
    model, batches = problem
    (row,) = (r for r in benchmark("peers").peers(model, batches, None) if "vmap" in r.name)
    expected = pai.curvature_diagonal(model, batches, estimator="empirical_fisher")
    assert benchmark("scoring").error_of(row.run(), expected) < 1e-4


def test_a_network_of_modules_alone_is_the_same_function(benchmark: Any) -> None:
    model = vgg(num_classes=3, in_channels=1, depth=11).eval()
    x = torch.randn(2, 1, 32, 32)
    chain = benchmark("peers").modules_only(model)
    assert torch.equal(chain(x), model(x))
    assert {id(p) for p in chain.parameters()} == {id(p) for p in model.parameters()}
    with pytest.raises(TypeError, match="Linear"):
        benchmark("peers").modules_only(nn.Linear(2, 2))


@linux
def test_a_peer_that_fails_is_a_line_and_pai_is_not(benchmark: Any, problem: Any) -> None:
    model, batches = problem
    scoring, peers = benchmark("scoring"), benchmark("peers")

    def fail() -> Any:
        raise NotImplementedError("no rule for | this\nand more")

    def fisher() -> dict[str, Tensor]:
        return pai.curvature_diagonal(model, batches, estimator="empirical_fisher")

    good = peers.Row("good", fisher, "empirical_fisher")
    bad = peers.Row("bad", fail, "gauss_newton", temperature=2.0)
    _, _, lines = scoring.measure(model, batches, [bad, good], 1, CPU)
    assert lines["bad"].cells()[0] == "failed: NotImplementedError: no rule for / this"
    assert lines["good"].errors[0] < 1e-3 < lines["good"].errors_to_ggn[0]
    with pytest.raises(NotImplementedError):
        scoring.measure(model, batches, [peers.Row("pai x", fail, "gauss_newton")], 1, CPU)


@pytest.mark.parametrize("name", ["resnet20", "vit_cifar"])
def test_a_network_gets_what_its_builder_asks_for(name: str, benchmark: Any) -> None:
    build = benchmark("networks").build_network
    model = build(name, num_classes=7, channels=1, size=16, device=CPU)
    assert model.eval()(torch.zeros(2, 1, 16, 16)).shape == (2, 7)


def test_every_loop_is_measured_against_the_peak_of_its_precision(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    training = benchmark("training")
    speeds = {name: [10.0] for name in (training.PLAIN, *training.OPTIONS)}
    training.report_speeds(speeds, {"float32": 4e10, "bfloat16": 8e10}, 1e9)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| p")]
    assert len(rows) == 6
    for name, *_, whole, own in rows:
        assert (whole, own) == ("25%", "12% |" if "bfloat16" in name else "25% |")
    assert all(training.gemm_flops(CPU, dtype, size=16) > 0 for dtype in training.DTYPES.values())
