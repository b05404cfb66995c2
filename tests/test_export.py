"""Compacted networks give the same outputs; sparse files give the same bits."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHECKOUT, python, tiny_run
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.export.sparse import load_sparse, save_sparse
from pai.models.resnet import resnet, thin_resnet
from pai.models.torchvision_resnet import imagenet_resnet
from pai.models.vgg import vgg


class Mixed(nn.Module):
    """Depthwise, grouped and shared layers, a gate, flattening, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.twice = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.gate = nn.Conv2d(6, 8, 1)
        self.last = nn.Conv2d(6, 8, 3, padding="same", bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.hidden, self.head = nn.Linear(128, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.depthwise(self.stem(x)))
        x = F.relu(self.norm(self.twice(self.twice(x))), inplace=True)
        gate = torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        x = self.grouped(self.last(x) * gate)
        return self.head(F.relu(self.hidden(torch.flatten(x, 1))))


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.GELU(),
        nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(),
        nn.Linear(6, 3),
    )  # fmt: skip


class Overwrites(nn.Module):
    """In-place operations whose operand is read again, by another name or as a statement."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(2, 4, 3, padding=1) for _ in range(3))
        self.same, self.relu = nn.Identity(), nn.ReLU(inplace=True)
        self.last, self.head = nn.Conv2d(4, 4, 1), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), self.b(x)
        alias = self.same(y)
        y.add_(z)  # alias is y, and so is the sum
        y = alias + self.last(alias)
        y.mul_(self.c(x))
        F.relu(z, inplace=True)
        z = self.last(z) + F.relu(z) + z
        return self.head(torch.flatten(self.relu(y + z) + y, 1))


class Reads(nn.Module):
    """Operands that are read twice, a shared ReLU, an input that goes into a ReLU and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.gate, self.relu = nn.Conv2d(2, 2, 8), nn.ReLU()
        self.head = nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), self.b(F.relu(x))
        y = self.relu(y) + self.relu(self.b(x)) + y
        y = torch.add(self.gate(x), y) + (x + y)
        return self.head(torch.flatten(y.relu() + torch.add(y, z, alpha=2), 1))


BUILDERS: list[Callable[[], nn.Module]] = [
    chain, Mixed,
    lambda: thin_resnet(num_classes=3, in_channels=2, depth=14, width=4),
    lambda: resnet(num_classes=3, in_channels=2, depth=50, width=2),
    Overwrites, Reads,
]  # fmt: skip


def pruned(build: Callable[[], nn.Module], density: float, seed: int) -> nn.Module:
    """A network in float64 with random statistics, shifts and mask."""
    torch.manual_seed(seed)
    model = build().double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
                module.bias.normal_()
    parameters = pai.prunable_parameters(model, include_classifier=True)
    # unlike densities of units, so that some lose everything
    mask = {
        name: torch.rand(p.shape) < density * 2 * torch.rand(len(p), *[1] * (p.ndim - 1)) ** 2
        for name, p in parameters.items()
    }
    pai.apply_mask(model, mask)
    return model


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BUILDERS), st.sampled_from([0.01, 0.05, 0.2, 0.6]), st.integers(0, 10**6))
def test_a_compacted_network_gives_the_same_outputs(
    build: Callable[[], nn.Module], density: float, seed: int
) -> None:
    model = pruned(build, density, seed)
    inputs = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    small = pai.compact(model, inputs)
    before = inputs.clone()
    with torch.no_grad():
        expected = model(inputs)
        for _ in range(2):  # nothing is overwritten that a later pass reads
            assert torch.allclose(small(inputs), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(inputs, before)
    count = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in small.parameters()) <= count + 100  # a folded bias is new


@pytest.mark.parametrize(
    ("model", "side"),
    [
        (vgg(num_classes=3, in_channels=2, depth=11), 32),
        (imagenet_resnet(num_classes=3, in_channels=2), 32),
    ],
    ids=["vgg11", "torchvision"],
)
def test_networks_in_float32(model: nn.Module, side: int) -> None:
    torch.manual_seed(0)
    for parameter in pai.prunable_parameters(model).values():
        parameter.data.mul_(torch.rand(parameter.shape) < 3e-4)
    inputs = torch.randn(2, 2, side, side)
    small = pai.compact(model, inputs)
    with torch.no_grad():
        assert torch.allclose(model.eval()(inputs), small(inputs), rtol=1e-4, atol=1e-5)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (model, small)]
    assert sizes[1] < sizes[0] / 4


def test_what_is_removed_in_a_case_done_by_hand() -> None:
    first, second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
    third = nn.Conv2d(3, 2, 1)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
    with torch.no_grad():
        first.weight[:2] = 0  # constants: 0 after the ReLU, and 1
        bias = first.get_parameter("bias")
        bias[:] = torch.tensor([-1.0, 1.0, 0.5, 0.5])
        second.weight[:, 3] = 0  # nobody listens to channel 3
        third.weight[:, 1] = 0
    small = pai.compact(model, torch.zeros(1, 1, 5, 5))
    shapes = [tuple(p.shape) for name, p in small.named_parameters() if name.endswith("weight")]
    assert shapes == [(1, 1, 3, 3), (2, 1, 3, 3), (2, 2, 1, 1)]
    assert small.get_buffer("2.shift").shape == (1, 2, 5, 5)  # a 1 whose sum is less at borders
    assert torch.equal(bias, torch.tensor([-1.0, 1.0, 0.5, 0.5]))


def test_a_network_without_a_path_is_a_constant() -> None:
    model = pruned(chain, 0.5, 0)
    with torch.no_grad():
        model.get_parameter("4.weight").zero_()
    inputs = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    small = pai.compact(model, inputs)
    assert torch.allclose(model(inputs), small(inputs))
    assert [name for name, _ in small.named_parameters()] == []


@pytest.mark.parametrize("build", [BUILDERS[2], lambda: vgg(num_classes=3, in_channels=2)])
def test_results_of_layers_that_nothing_else_reads_are_overwritten(build: Any) -> None:
    small = pai.compact(build().eval(), torch.zeros(1, 2, 32, 32))
    relus = [m for m in small.modules() if isinstance(m, nn.ReLU)]
    targets = [str(node.target) for node in small.graph.nodes]
    assert all(m.inplace for m in relus)
    assert not any("built-in function add" in t or "function relu at" in t for t in targets)
    assert relus or ("add_" in targets and any("relu_" in t for t in targets))


def test_a_tensor_that_is_overwritten_in_another_shape_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            torch.flatten(x, 1).relu_()
            return self.conv(x)

    with pytest.raises(ValueError, match=r"conv_1 reads conv, which relu_ has overwritten"):
        pai.compact(Flat(), torch.zeros(1, 2, 4, 4))


def test_what_tracing_does_not_see_is_refused() -> None:
    class TwoNames(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(x)
            other = y
            y += 1.0  # traced as y = y + 1
            return other

    with pytest.raises(ValueError, match=r"compact: .* computes something else"):
        pai.compact(TwoNames(), torch.zeros(1, 2, 4, 4))


def test_a_linear_layer_on_a_sequence_is_refused() -> None:
    """Its features are the last axis, and flattened in another order than channels."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"compact: _0 is a Linear on .* shape \(1, 2, 3\)"):
        pai.compact(model, torch.zeros(1, 2, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the older weight_norm
@pytest.mark.parametrize(
    "normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm], ids=["new", "old"]
)
def test_a_weight_that_is_made_of_others_is_refused(normed: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), normed(nn.Linear(4, 2)))
    with torch.no_grad():
        model.get_parameter("0.weight")[1].zero_()
    with pytest.raises(ValueError, match=r"compact: '2' makes its weight of other parameters"):
        pai.compact(model, torch.zeros(1, 3))


def test_outputs_that_differ_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model.get_parameter("0.weight")[1] = model.get_parameter("0.bias")[1] = 0
    assert pai.compact(model, torch.zeros(1, 3)).get_parameter("0.weight").shape == (3, 3)
    model[0].register_forward_hook(lambda layer, args, out: out + torch.arange(out.shape[1]))
    with pytest.raises(ValueError, match="the compacted network computes something else"):
        pai.compact(model, torch.zeros(1, 3))


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    class Remembers(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.last = super().forward(x)
            return self.last

    model, images = Remembers(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), torch.randn(1, 1, 6, 6)
    model(images)
    with pytest.raises(ValueError, match=r"^compact: the model cannot be copied: Only Tensors"):
        pai.compact(model, images)


def test_what_is_not_known_is_named() -> None:
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(1).values

    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"compact: sort .* no operation"):
        pai.compact(Sorts(), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="cannot trace"):
        pai.compact(Decides(), torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_sparse_file_gives_the_same_bits(
    tmp_path: Path, density: float, dtype: torch.dtype
) -> None:
    model = pruned(BUILDERS[2], density, 0).to(dtype)
    with torch.no_grad():
        model.get_parameter("conv1.weight").view(-1)[:3] = torch.tensor(
            [-0.0, torch.nan, torch.inf]
        )
    size = save_sparse(model, tmp_path / "sparse.safetensors")
    assert size == (tmp_path / "sparse.safetensors").stat().st_size
    torch.manual_seed(1)
    other = BUILDERS[2]().to(dtype)
    load_sparse(other, str(tmp_path / "sparse.safetensors"))
    for name, value in model.state_dict().items():
        found = other.state_dict()[name]
        unsigned = torch.where(value == 0, torch.zeros_like(value), value)  # -0 becomes 0
        assert torch.equal(unsigned.view(-1).view(torch.uint8), found.view(-1).view(torch.uint8))


def test_weights_times_a_mask_are_stored_without_their_zeros(tmp_path: Path) -> None:
    model = nn.Linear(100, 100, bias=False)
    keep = torch.rand(100, 100) < 0.02
    with torch.no_grad():
        model.weight.mul_(keep)  # half of the zeros are negative
    size = save_sparse(model, tmp_path / "sparse")
    pai.apply_mask(model, {"weight": keep})
    assert size == save_sparse(model, tmp_path / "sparse") < 2500


def test_a_sparse_file_is_small(tmp_path: Path) -> None:
    model = nn.Linear(1000, 100, bias=False)
    for kept, most in ((1000, 1000 * 8), (10_000, 100_000 / 8 + 10_000 * 4)):
        with torch.no_grad():
            model.weight.zero_().view(-1)[:kept] = 1
        assert most <= save_sparse(model, tmp_path / "file") < most + 500


def test_a_sparse_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_sparse(nn.Linear(3, 2), str(path))
    other = nn.Linear(3, 3)
    before = other.weight.detach().clone()
    with pytest.raises(ValueError, match=r"'bias' has shape torch.Size\(\[2\]\) in the file"):
        load_sparse(other, path)
    with pytest.raises(ValueError, match="the model has no 'bias'"):
        load_sparse(nn.Linear(3, 2, bias=False), path)
    assert torch.equal(other.weight, before)
    path.write_bytes(b"not a file of ours")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_sparse(other, path)


@pytest.mark.slow
def test_the_script_compacts_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    tiny_run(run_dir, "sparsity=0.99", "training.epochs=0")
    path = str(CHECKOUT / "scripts" / "compact.py")
    done = python(path, str(run_dir), "--seconds", "0", "--batch-size", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((run_dir / "compact" / "report.json").read_text())
    assert report["parameters"][1] < report["parameters"][0]
    assert report["exported_deviation"] < 1e-5
    assert report["channels"][1] < report["channels"][0]
    assert "speed-up" in done.stdout and "microseconds per image" in done.stdout
    size = (run_dir / "compact" / "compact.pt2").stat().st_size
    assert report["exported_bytes"] == size
    assert f"{size:,} exported" in done.stdout
    assert report["constants"] > 0
    assert f" + {report['constants']:,} constants" in done.stdout
    missing = python(path, str(tmp_path), cwd=tmp_path)
    assert missing.returncode == 1 and "holds no completed run" in missing.stderr


def test_constants_that_are_no_parameters_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(),
        nn.Conv2d(5, 2, 1),
    )  # fmt: skip
    first, second, _ = (layer for layer in model if isinstance(layer, nn.Conv2d))
    for layer in (first, second):
        assert layer.bias is not None
        nn.init.ones_(layer.bias)
    with torch.no_grad():
        first.weight[1].zero_()  # a constant, which zero padding makes differ at the borders
    count = script(monkeypatch).constants
    assert count(model) == 0
    assert count(pai.compact(model, torch.zeros(1, 1, 6, 7))) == 5 * 6 * 7
    with torch.no_grad():
        first.weight.zero_()
    small = pai.compact(model, torch.zeros(1, 1, 6, 7))
    assert count(small) == sum(buffer.numel() for buffer in small.buffers()) > 0


def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import scripts/compact.py."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "scripts"))
    return importlib.import_module("compact")


@pytest.mark.filterwarnings("ignore::Warning")  # torch's exporter and onnxscript warn
def test_a_compacted_network_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = pruned(lambda: thin_resnet(num_classes=3, in_channels=2, depth=8, width=4), 0.1, 0)
    model, inputs = model.float(), torch.randn(5, 2, 8, 8)
    small = pai.compact(model, inputs)
    assert script(monkeypatch).export_onnx(small, inputs, tmp_path / "x.onnx") < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    for batch in (inputs, inputs[:1]):
        (found,) = session.run(None, {"input": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(batch), rtol=1e-4, atol=1e-5)


def test_onnx_without_its_packages_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact = script(monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["compact.py", str(tmp_path), "--onnx"])
    with pytest.raises(SystemExit, match=r"--onnx needs onnxruntime: pip install 'pai\[onnx\]'"):
        compact.main()


def test_arguments_with_defaults_are_left_at_them() -> None:
    class Optional(nn.Sequential):
        def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
            x = torch.relu(self[0](x)) * scale
            return self[1](x if mask is None else x * mask)

    model = Optional(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        model.get_parameter("0.weight")[1:3] = 0
        model.get_parameter("0.bias")[1:3] = 0
    small = pai.compact(model, torch.zeros(1, 1, 8, 8))
    assert small.get_submodule("0").out_channels == 2
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(small(x), model(x), atol=1e-6)


def test_tokens_are_no_input_for_it() -> None:
    with pytest.raises(ValueError, match="compact: inputs must be real numbers"):
        pai.compact(nn.Sequential(nn.Embedding(5, 3)), torch.zeros(1, 3).long())
