"""The whole of pai on a GPU, or on a device that stands for one, against the CPU.

``make test-device`` runs these and those of ``curvature`` without a GPU: ``simulated_device.py``.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import flatten
from safetensors.torch import load_file
from tiny import LABELS, config, record_in
from torch import Tensor, nn

import pai
from pai.masking.effective import effective_kept
from pai.masking.mask import mask_report, mask_sha256, save_mask
from pai.masking.select import SCOPES
from pai.plan import prepare
from pai.runner import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:no fast per-sample rule"),
]


class Convolutions(nn.Module):
    """Plain and grouped convolutions, BatchNorm, a residual addition in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.hidden, self.head = nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.grouped(x))
        pooled = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.hidden(pooled)))


class Transformer(nn.Module):
    """One block of torch's own, on four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(12, 8), nn.Parameter(torch.randn(1, 4, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.reshape(len(x), 4, 12)) + self.positions
        return self.head(self.block(tokens).mean(1))


COMMON = ("training.epochs=1", "scoring.samples_per_class=2", "logger=none", "device=cpu")
NETWORKS = pytest.mark.parametrize("network", [Convolutions, Transformer])
Problem = tuple[nn.Module, list[tuple[Tensor, Tensor]]]


def on_both(network: type[nn.Module], accelerator: torch.device) -> tuple[Problem, Problem]:
    """Return the same network and batches twice: on the CPU, and on the device."""
    torch.manual_seed(0)
    model, x, y = network().double(), torch.randn(12, 3, 4, 4).double(), torch.arange(12) % 3
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]
    there = copy.deepcopy(model).to(accelerator)
    return (model, batches), (there, [(a.to(accelerator), b.to(accelerator)) for a, b in batches])


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@NETWORKS
@pytest.mark.parametrize("name", pai.available_scorers())
def test_scores_are_those_of_the_cpu_and_stay_on_the_device(
    accelerator: torch.device, name: str, network: type[nn.Module]
) -> None:
    here, there = on_both(network, accelerator)
    if network is Transformer and name in ("phew", "px"):
        pytest.skip("not defined for attention")
    expected = pai.load_scorer(name)(*here, generator=stream())
    found = pai.load_scorer(name)(*there, generator=stream())
    assert {value.device for value in found.values()} == {accelerator}
    largest = flatten(expected).abs().max()
    assert (flatten(found).cpu() - flatten(expected)).abs().max() <= 1e-9 * largest


@NETWORKS
@pytest.mark.parametrize("scope", [*SCOPES, "2:4"])
def test_masks_are_those_of_the_cpu(
    accelerator: torch.device, scope: str, network: type[nn.Module]
) -> None:
    here, there = on_both(network, accelerator)
    sparsity = {"uniform_plus": 0.2}.get(scope, 0.5)
    snip, fts = pai.load_scorer("snip"), pai.load_scorer("fts")
    expected = pai.find_mask(*here, snip, sparsity=sparsity, scope=scope)
    found = pai.find_mask(*there, snip, sparsity=sparsity, scope=scope)
    assert mask_sha256(found) == mask_sha256(expected)
    further = {"uniform_plus": 0.3, "2:4": 0.5}.get(scope, 0.7)
    again = pai.find_mask(*there, fts, sparsity=further, scope=scope, within=expected)
    within = pai.find_mask(*here, fts, sparsity=further, scope=scope, within=found)
    assert mask_sha256(again) == mask_sha256(within)


@NETWORKS
def test_rounds_of_a_schedule_are_those_of_the_cpu(
    accelerator: torch.device, network: type[nn.Module]
) -> None:
    options: dict[str, Any] = {"sparsity": 0.8, "schedule": pai.load_schedule("exponential")}
    here, there = (
        pai.find_mask(*problem, pai.load_scorer("gts"), **options)
        for problem in on_both(network, accelerator)
    )
    assert mask_sha256(there) == mask_sha256(here)


@NETWORKS
def test_a_masked_network_is_described_stored_and_read(
    accelerator: torch.device, network: type[nn.Module], tmp_path: Path
) -> None:
    _, (model, batches) = on_both(network, accelerator)
    mask = pai.find_mask(model, batches, pai.load_scorer("snip"), sparsity=0.9)
    on_cpu = {name: keep.cpu() for name, keep in mask.items()}
    inputs = batches[0][0]
    effective, expected = (effective_kept(model, m, inputs[:1]) for m in (mask, on_cpu))
    assert mask_sha256(effective) == mask_sha256(expected)
    report = mask_report(model, mask, inputs[:1])
    assert report == mask_report(model, on_cpu, inputs[:1])
    pai.apply_mask(model, on_cpu)
    pai.apply_mask(model, mask)
    assert all(not model.get_parameter(n)[~keep].any() for n, keep in mask.items())
    save_mask(mask, tmp_path / "mask.safetensors")
    stored = load_file(tmp_path / "mask.safetensors")
    assert all(torch.equal(stored[name].bool(), keep) for name, keep in on_cpu.items())
    pai.save_sparse(model, tmp_path / "sparse.safetensors")
    before = model(inputs)
    with torch.no_grad():
        model.get_parameter("head.weight").zero_()
    pai.load_sparse(model, tmp_path / "sparse.safetensors")
    assert torch.equal(model(inputs), before)


def test_a_smaller_network_is_made_on_the_device(accelerator: torch.device) -> None:
    _, (model, batches) = on_both(Convolutions, accelerator)
    mask = pai.find_mask(model, batches, pai.load_scorer("magnitude"), sparsity=0.9)
    pai.apply_mask(model, mask)
    model.eval()
    small = pai.compact(model, batches[0][0])
    assert {parameter.device for parameter in small.parameters()} == {accelerator}
    assert (small(batches[0][0]) - model(batches[0][0])).abs().max() <= 1e-9


def test_statistics_of_a_warmup_are_those_of_the_cpu(accelerator: torch.device) -> None:
    here, there = on_both(Convolutions, accelerator)
    for problem in (here, there):
        pai.warm_up_batchnorm(*problem)
    for name, expected in here[0].named_buffers():
        found = there[0].get_buffer(name).cpu()
        assert torch.allclose(found, expected, rtol=1e-9, atol=0), name


@pytest.mark.parametrize(
    "overrides",
    [
        ("scorer=hts",),
        ("scorer=fts", "schedule=exponential", "schedule.rounds=2"),
        ("scorer=snip", "sparsity_is=effective", "training.epochs=0"),
        ("baseline=lottery_ticket", "training.epochs=2"),
        ("training.label_smoothing=0.1", "training.mixup_alpha=0.2", "training.precision=bfloat16"),
        ("model=gpt", "dataset=text", "dataset.context_length=12", "model.embed_dim=8",
         "scorer=snip", "warmup=none"),
        ("model=gat", "dataset=karate", "scorer=fd", "warmup=none"),
    ],
    ids=lambda overrides: overrides[0],
)  # fmt: skip
def test_a_run_begins_is_continued_and_ends_there(
    accelerator: torch.device, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    other = overrides[0].startswith("model=")
    sizes = () if other else ("model.depth=8", "model.width=4")
    settings = replace(prepare(config(*COMMON, *sizes, *overrides)), device=accelerator)
    whole = run(settings, tmp_path, LABELS)
    assert whole["status"] == "completed"
    assert whole["environment"]["device"].startswith(accelerator.type)
    kept = load_file(tmp_path / "mask.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    assert all(not weights[name][~keep.bool()].any() for name, keep in kept.items())
    record = record_in(tmp_path)
    record["status"] = "failed"
    (tmp_path / "record.json").write_text(json.dumps(record))
    again = run(settings, tmp_path, LABELS)
    assert again["metrics"] == whole["metrics"]
    assert again["mask"]["sha256"] == whole["mask"]["sha256"]
