"""Effective weights of graph networks and of a GPT, against changing entries one by one."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from brute_force import effective_by_brute_force
from test_effective import prepared
from tiny import LABELS, config
from torch import Tensor, nn

import pai
from pai.masking.effective import Connectivity, effective_kept
from pai.models.gnn import gat, gcn
from pai.models.gpt import gpt
from pai.plan import prepare
from pai.runner import run

NODES, FEATURES = 6, 3
RING = torch.tensor([[n, (n + 1) % NODES] for n in range(NODES)] + [[0, 3]]).T
EDGES = torch.cat((RING, RING.flip(0)), dim=1)


def graph(build: Any, **options: Any) -> nn.Module:
    """Return a graph network in which no signal is negative, so that none is cancelled or cut."""
    model: nn.Module = build(
        num_classes=2, node_features=torch.rand(NODES, FEATURES), edge_index=EDGES, **options
    )
    for parameter in model.parameters():
        parameter.data.abs_()
    return model.double().eval()


def signals(model: nn.Module, layer: nn.Module, change: Tensor | None) -> tuple[Tensor, ...]:
    """Return input and output of ``layer``, ``change`` added, and the logits of all nodes."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        seen.extend((args[0], out))
        return out if change is None else out + change

    handle = layer.register_forward_hook(hook)
    with torch.no_grad():
        logits = model(torch.arange(NODES))
    handle.remove()
    return seen[0], seen[1], logits


def by_brute_force(model: Any, keep: Tensor, layer: nn.Module) -> Tensor:
    """Return the kept weights between what varies with the features and what the logits hear."""
    first, out, logits = signals(model, layer, None)
    features = model.features
    model.features = torch.rand_like(features)
    varies = signals(model, layer, None)[0] != first
    model.features = features
    heard = torch.zeros(out.shape, dtype=torch.bool)
    for position in itertools.product(*map(range, out.shape)):
        change = torch.zeros_like(out)
        change[position] = 0.37
        heard[position] = (signals(model, layer, change)[2] - logits).abs().max() > 1e-13
    return keep & (torch.einsum("vo,vi->oi", heard.double(), varies.double()) > 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("build", "options"), [(gcn, {"width": 5, "depth": 3}), (gat, {"width": 3, "heads": 2})]
)
def test_effective_weights_of_graph_networks(build: Any, options: Any, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = graph(build, **options)
        parameters = pai.prunable_parameters(model, include_classifier=True)
        mask = {name: torch.rand(p.shape) < 0.4 for name, p in parameters.items()}
    mask["layers.0.linear.weight"][0] = False  # what reads this unit is of no use
    if seed == 3:
        mask["layers.1.linear.weight"][:] = False
    pai.apply_mask(model, mask)
    found = effective_kept(model, mask, torch.tensor([4]))
    for name, keep in mask.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(found[name], by_brute_force(model, keep, layer)), name
    assert not found["layers.1.linear.weight"][:, 0].any()
    assert any(bool(keep.any()) for keep in found.values()) == (seed != 3)
    cut = Connectivity(model, torch.tensor([4])).paths(mask).cut_at
    assert cut == ("layers.1.linear.weight" if seed == 3 else None)


@pytest.mark.parametrize("model", ["gcn", "gat"])
def test_a_run_on_a_graph_says_how_much_of_it_is_connected(model: str, tmp_path: Path) -> None:
    chosen = (
        "dataset=karate", f"model={model}", "training.epochs=0", "logger=none", "device=cpu",
        "scorer=random", "sparsity=0.97", "scoring.samples_per_class=2",
    )  # fmt: skip
    mask = run(prepare(config(*chosen)), tmp_path, LABELS)["mask"]
    assert mask["effective_undefined"] is None
    assert mask["sparsity"] <= mask["effective_sparsity"] <= 1


@pytest.mark.parametrize("seed", range(3))
def test_effective_weights_of_a_gpt(seed: int) -> None:
    def build() -> nn.Module:
        sizes = {"embed_dim": 4, "depth": 1, "num_heads": 2, "mlp_ratio": 1.5}
        return gpt(vocab_size=6, context_length=3, tie_embeddings=False, **sizes)  # type: ignore[arg-type]

    model, mask, _ = prepared(build, (1,), 0.3, seed)
    tokens = torch.tensor([[0, 1, 2], [3, 4, 5]])
    found = effective_kept(model, mask, tokens[:1])
    for name, keep in effective_by_brute_force(model, mask, tokens).items():
        assert torch.equal(found[name], keep), name


@pytest.mark.parametrize("nodes", [[0], [5], [2, 3]])
def test_what_reaches_any_node_counts_whichever_nodes_are_given(nodes: list[int]) -> None:
    far = torch.tensor([[0, 1], [1, 0]])  # two nodes that see each other, and four alone
    model = gcn(num_classes=2, node_features=torch.eye(NODES), edge_index=far, width=4).eval()
    parameters = pai.prunable_parameters(model, include_classifier=True)
    mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
    found = effective_kept(model, mask, torch.tensor(nodes))
    assert all(bool(kept.all()) for kept in found.values())
