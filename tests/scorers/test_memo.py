"""Scores from the cache are those that would have been computed, and nothing else."""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import record_in, tiny_run
from torch import Tensor, nn

import pai
from pai.models.resnet import thin_resnet
from pai.scorers import memo
from pai.scorers.memo import remembering

REMEMBERED = [
    "grad_norm", "snip", "grasp", "synflow", "fd", "fp", "fts", "gp", "gts", "mp", "hts", "force",
    "ntk_sap", "prospr", "px", "phew",
]  # fmt: skip
Batches = list[tuple[Tensor, Tensor]]


def problem() -> tuple[nn.Module, Batches]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = thin_resnet(num_classes=4, in_channels=1, depth=8, width=4)
        x, y = torch.randn(6, 1, 8, 8), torch.randint(0, 4, (6,))
    return model, [(x[:4], y[:4]), (x[4:], y[4:])]


def scores(
    folder: Path | None, name: str, *, change: Callable[[nn.Module, Batches], Any] | None = None,
    seed: int = 1, about: str = "", parameters: Any = None, **options: Any,
) -> tuple[dict[str, Tensor], list[bool]]:  # fmt: skip
    """Return scores, and for all that was looked up whether it was there."""
    model, batches = problem()
    if change is not None:
        change(model, batches)
    stream = torch.Generator().manual_seed(seed)
    with remembering(folder, model, batches, stream, {"model": about}) as memory:
        found = pai.load_scorer(name, **options)(
            model, batches, generator=stream, parameters=parameters and parameters(model)
        )
    return found, [entry["hit"] for entry in memory.entries] if memory else []


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", REMEMBERED)
def test_a_hit_is_bit_for_bit_what_would_have_been_computed(tmp_path: Path, name: str) -> None:
    plain, asked = scores(None, name)
    assert asked == []
    first, asked = scores(tmp_path, name)
    assert asked == [False]
    second, asked = scores(tmp_path, name)
    assert asked == [True]
    assert same(first, plain)
    assert same(second, plain)


@pytest.mark.parametrize(
    "family",
    [
        ["hd", "hp", "hts"], ["fts", "fd", "fp"], ["gd", "gp", "gts"], ["mp", "md", "mts"],
        ["grad_norm", "snip"],
    ],
)  # fmt: skip
def test_a_family_shares_one_computation(tmp_path: Path, family: list[str]) -> None:
    asked = []
    for name in family:
        found, hits = scores(tmp_path, name)
        asked += hits
        assert same(found, scores(None, name)[0])
    assert asked == [False] + [True] * (len(family) - 1)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def nudge_weight(model: nn.Module, batches: Batches) -> None:
    with torch.no_grad():
        model.get_parameter("fc.bias")[0] += 1e-6


def nudge_statistics(model: nn.Module, batches: Batches) -> None:
    model.get_buffer("bn1.running_mean")[0] += 1e-6


def other_sample(model: nn.Module, batches: Batches) -> None:
    batches[1][0][0, 0, 0, 0] += 1e-6


def other_label(model: nn.Module, batches: Batches) -> None:
    batches[1][1][0] = (batches[1][1][0] + 1) % 4


def one_batch(model: nn.Module, batches: Batches) -> None:
    batches[:] = [tuple(torch.cat(pair) for pair in zip(*batches, strict=True))]  # type: ignore[list-item]


@pytest.mark.parametrize(
    "differently",
    [
        {"change": nudge_weight}, {"change": nudge_statistics}, {"change": other_sample},
        {"change": other_label}, {"change": one_batch}, {"seed": 2}, {"about": "gelu"},
        {"temperature": 2.0}, {"num_probes": 3}, {"batch_size": 2}, {"matrix": "gauss_newton"},
        {"parameters": lambda m: pai.prunable_parameters(m, include_classifier=True)},
    ],
    ids=[f"change{k}" for k in range(12)],
)  # fmt: skip
def test_whatever_the_scores_depend_on_is_in_the_key(
    tmp_path: Path, differently: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "num_probes": 2, "batch_size": 3}
    scores(tmp_path, "hp", **options)
    assert scores(tmp_path, "hp", **options)[1] == [True]
    found, asked = scores(tmp_path, "hp", **(options | differently))
    assert asked == [False]
    assert same(found, scores(None, "hp", **(options | differently))[0])


def test_other_source_code_is_another_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(tmp_path, "snip")
    monkeypatch.setattr("pai.scorers.memo.source_version", lambda file: "edited")
    assert scores(tmp_path, "snip")[1] == [False]


CLASS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.{function}(self.first(x)))
"""
BUILDER = """
def Net():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    net[1].forward = torch.{function}
    return net
"""


def scored_anew(folder: Path, cache: Path, source: str, patch: pytest.MonkeyPatch) -> bool:
    """Score a network of a user's package in ``folder``; return whether it was computed."""
    package = folder / "users_network"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from users_network.net import Net\n")
    (package / "net.py").write_text(f"import torch\nfrom torch import nn\n{source}")
    with patch.context() as here:
        here.syspath_prepend(str(folder))
        code_version = functools.cache(memo._code_version.__wrapped__)  # as in a new process
        here.setattr(memo, "_code_version", code_version)
        for name in ("users_network", "users_network.net"):
            sys.modules.pop(name, None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = importlib.import_module("users_network").Net()
            batches = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]
        with remembering(cache, model, batches, None, {}) as memory:
            found = pai.load_scorer("fp")(model, batches)
        assert same(found, pai.load_scorer("fp")(model, batches))
    assert memory is not None
    (entry,) = memory.entries
    return not entry["hit"]


@pytest.mark.parametrize(
    ("source", "trusted"), [(CLASS, ""), (BUILDER, "users_network")], ids=["class", "builder"]
)
def test_the_same_parameters_with_another_forward_are_another_entry(
    source: str, trusted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAI_TRUSTED_PACKAGES", trusted)
    relu, tanh = source.format(function="relu"), source.format(function="tanh")
    made = (("a", relu, True), ("b", relu, False), ("c", tanh, True), ("d", tanh, False))
    for place, text, anew in made:  # the code counts, not where it is
        found = scored_anew(tmp_path / place, tmp_path / "cache", text, monkeypatch)
        assert found == anew, place


def test_a_loss_of_ones_own_is_not_remembered(tmp_path: Path) -> None:
    model, batches = problem()
    for name in ("snip", "fp", "grasp"):
        with remembering(tmp_path, model, batches, None, {}) as memory:
            pai.load_scorer(name)(model, batches, loss_fn=nn.CrossEntropyLoss(label_smoothing=0.1))
        assert memory is not None
        assert memory.entries == []


def test_a_damaged_entry_is_computed_anew(tmp_path: Path) -> None:
    plain, _ = scores(tmp_path, "snip")
    (entry,) = tmp_path.glob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-7])
    found, asked = scores(tmp_path, "snip")
    assert asked == [False]
    assert same(found, plain)


def test_runs_at_several_sparsities_score_once_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAI_CACHE", str(tmp_path / "cache"))
    cached = []
    for place, scorer, sparsity in [
        ("a", "gts", 0.5), ("b", "gts", 0.9), ("c", "gp", 0.9),
    ]:  # fmt: skip
        tiny_run(tmp_path / place, f"scorer={scorer}", f"sparsity={sparsity}")
        cached.append(record_in(tmp_path / place)["scoring"]["cached"])
    assert cached == [False, True, True]
    tiny_run(tmp_path / "d", "scorer=gp", "sparsity=0.9", "scoring.cache_dir=null")
    alone, shared = (record_in(tmp_path / place) for place in ("d", "c"))
    assert alone["scoring"]["cached"] is False
    assert alone["mask"]["sha256"] == shared["mask"]["sha256"]


def test_iterative_schedules_are_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAI_CACHE", str(tmp_path / "cache"))
    for place in ("a", "b"):
        tiny_run(tmp_path / place, "scorer=mp", "schedule=exponential", "schedule.rounds=2")
    records = [record_in(tmp_path / place) for place in ("a", "b")]
    assert [one["scoring"]["cached"] for one in records] == [False, False]
    assert records[0]["mask"]["sha256"] == records[1]["mask"]["sha256"]
    assert not list((tmp_path / "cache").glob("*.safetensors"))
