import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pai
from pai.masking.effective import effective_kept
from pai.masking.mask import dense_mask, load_mask, mask_report, mask_sha256, save_mask
from pai.models.resnet import resnet, thin_resnet
from pai.models.vgg import vgg


def test_apply_mask_zeroes_exactly_the_pruned_weights_even_if_not_finite() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0, torch.nan], [-torch.inf, -2.0]]))
    keep = torch.tensor([[True, False], [False, True]])
    pai.apply_mask(model, {"0.weight": keep})
    assert model.get_parameter("0.weight").tolist() == [[1.0, 0.0], [0.0, -2.0]]


def test_a_mask_that_does_not_fit_is_refused_before_anything_changes() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    good, bad = torch.zeros(2, 2, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="no parameter 'wieght'"):
        pai.apply_mask(model, {"weight": good, "wieght": good})
    with pytest.raises(ValueError, match=r"'bias' has shape \(3,\)"):
        pai.apply_mask(model, {"weight": good, "bias": bad})
    for wrong in (torch.uint8, torch.float32):
        with pytest.raises(ValueError, match=rf"^mask: 'bias' is {wrong}; masks are torch\.bool"):
            pai.apply_mask(model, {"weight": good, "bias": torch.ones(2, dtype=wrong)})
    assert torch.equal(model.weight, before)


def test_masks_survive_the_disk_and_their_hash_depends_on_every_bit(tmp_path: Path) -> None:
    mask = {"a": torch.tensor([True, False]), "b": torch.tensor([[True]])}
    save_mask(mask, tmp_path / "mask.safetensors")
    loaded = load_mask(tmp_path / "mask.safetensors")
    assert mask_sha256(loaded) == mask_sha256(mask)
    assert mask_sha256({"b": mask["b"], "a": mask["a"]}) == mask_sha256(mask)
    assert mask_sha256({"a": ~mask["a"], "b": mask["b"]}) != mask_sha256(mask)
    assert mask_sha256({"a": mask["a"], "c": mask["b"]}) != mask_sha256(mask)
    assert mask_sha256({"a": mask["a"][None], "b": mask["b"]}) != mask_sha256(mask)


def test_report_counts_and_names_collapsed_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    mask = dense_mask(pai.prunable_parameters(model))
    mask["2.weight"][:] = False
    report = mask_report(model, mask, torch.zeros(1, 4))
    assert (report["kept"], report["prunable"]) == (20, 50)
    assert report["sparsity"] == 0.6
    everything = sum(p.numel() for p in model.parameters())
    assert report["sparsity_all_parameters"] == 30 / everything
    assert report["collapsed_layers"] == ["2.weight"]
    assert report["effective_sparsity"] == 1.0  # nothing reaches the output
    assert [layer["density"] for layer in report["layers"]] == [1.0, 0.0]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_weights_has_lost_nothing() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.nothing, self.head = nn.Linear(4, 3), nn.Linear(4, 0), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.layer(x), self.nothing(x)], 1))

    model = Empty()
    scores = {name: p.detach().abs() for name, p in pai.prunable_parameters(model).items()}
    for scope in ("global", "layer", "erk"):
        report = mask_report(model, pai.select(scores, 0.5, scope), torch.zeros(1, 4))
        assert [layer["density"] for layer in report["layers"]] == [0.5, 1.0]
        assert report["collapsed_layers"] == report["dead_layers"] == []
        assert report["effective_sparsity"] == 0.5


def paths_by_brute_force(weights: list[Tensor]) -> list[Tensor]:
    """Weights of a plain multi-layer perceptron that lie on a path, by reachability of units."""
    forward = [torch.ones(weights[0].shape[1], dtype=torch.bool)]
    for keep in weights:
        forward.append((keep & forward[-1][None, :]).any(1))
    backward = [torch.ones(weights[-1].shape[0], dtype=torch.bool)]
    for keep in reversed(weights):
        backward.append((keep & backward[-1][:, None]).any(0))
    backward.reverse()
    return [keep & forward[i][None, :] & backward[i + 1][:, None] for i, keep in enumerate(weights)]


@pytest.mark.parametrize("seed", range(10))
def test_effective_weights_are_those_on_paths(seed: int) -> None:
    torch.manual_seed(seed)
    sizes = [6, 7, 5, 6, 3]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    model = nn.Sequential(*layers[:-2]).eval()
    mask = {
        name: torch.rand(p.shape) < 0.25
        for name, p in pai.prunable_parameters(model, include_classifier=True).items()
    }
    found = effective_kept(model, mask, torch.zeros(1, 6))
    truth = paths_by_brute_force(list(mask.values()))
    assert all(torch.equal(a, b) for a, b in zip(found.values(), truth, strict=True))


@pytest.mark.parametrize(
    ("model", "side"),
    [
        (thin_resnet(num_classes=3, in_channels=2, depth=20, width=8), 8),
        (resnet(num_classes=3, in_channels=2, depth=50, width=8), 16),
        (vgg(num_classes=3, in_channels=2, depth=11), 32),
    ],
    ids=["resnet20", "resnet50", "vgg11"],
)
def test_effective_sparsity_of_the_model_families(model: nn.Module, side: int) -> None:
    mask = dense_mask(pai.prunable_parameters(model))
    inputs = torch.zeros(1, 2, side, side)
    dense = effective_kept(model, mask, inputs)
    assert all(bool(keep.all()) for keep in dense.values())
    last = list(mask)[-1]
    mask[last] = torch.zeros_like(mask[last])
    mask[last][0, 0, 0, 0] = True  # one connection into channel 0, from channel 0
    found = effective_kept(model, mask, inputs)
    assert int(found[last].sum()) <= 1
    previous = list(mask)[-2]
    if isinstance(model, type(vgg(num_classes=3, in_channels=2))):
        centre = found[previous][:, :, 1, 1]  # the taps that never fall on padding
        assert centre[0].all() and not found[previous][1:].any()


def test_a_mask_is_written_and_read_by_name(tmp_path: Path) -> None:
    mask = {"weight": torch.tensor([True, False])}
    pai.save_mask(mask, str(tmp_path / "mask.safetensors"))
    assert torch.equal(pai.load_mask(str(tmp_path / "mask.safetensors"))["weight"], mask["weight"])


def test_a_mask_of_any_layout_is_written(tmp_path: Path) -> None:
    mask = {"weight": (torch.rand(3, 4, 3, 3) < 0.5).to(memory_format=torch.channels_last)}
    assert not mask["weight"].is_contiguous()
    pai.save_mask(mask, tmp_path / "mask.safetensors")
    assert torch.equal(pai.load_mask(tmp_path / "mask.safetensors")["weight"], mask["weight"])


def test_what_is_no_mask_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk is not a safetensors file"):
        pai.load_mask(tmp_path / "junk")
    pai.save_mask({"weight": torch.ones(2)}, tmp_path / "numbers")
    with pytest.raises(ValueError, match="numbers is no mask: 'weight' is not Boolean"):
        pai.load_mask(tmp_path / "numbers")
    with pytest.raises(FileNotFoundError):
        pai.load_mask(tmp_path / "nothing")
