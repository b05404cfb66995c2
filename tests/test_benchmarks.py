import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHECKOUT
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


@linux
def test_the_peak_is_that_of_memory_in_use_at_once(benchmark: Any) -> None:
    memory = benchmark("memory")

    def allocate() -> int:
        for _ in range(3):
            torch.ones(50 * MIB, dtype=torch.uint8)
        return 7

    result, growth = memory.with_peak(allocate, CPU)
    assert result == 7
    assert 48 * MIB <= growth < 75 * MIB
    kept: list[Tensor] = []
    _, growth = memory.with_peak(lambda: kept.append(torch.ones(20 * MIB, dtype=torch.uint8)), CPU)
    assert 18 * MIB <= growth < 35 * MIB


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
    assert benchmark("scoring").relative_error(row.run(), expected) < 1e-4


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
