"""Graph networks against the dense formulas of their papers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import fitting, tiny_run
from torch import Tensor, nn
from torch.nn import functional as F

from pai.data.karate import karate_club
from pai.models.gnn import GAT, GCN, gat, gcn
from pai.prunable import prunable_parameters

GRAPH = karate_club()
FEATURES = torch.randn(34, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ARGUMENTS: dict[str, Any] = {
    "num_classes": 3,
    "node_features": FEATURES,
    "edge_index": GRAPH.edge_index,
}
NODES = torch.tensor([33, 0, 7, 0])


def neighbours() -> Tensor:
    """The adjacency matrix with loops ``[V, V]``."""
    adjacency = torch.eye(34, dtype=torch.float64)
    adjacency[GRAPH.edge_index[1], GRAPH.edge_index[0]] = 1
    return adjacency


@pytest.mark.parametrize("depth", [2, 3])
def test_gcn_is_its_formula(depth: int) -> None:
    model: GCN = gcn(**ARGUMENTS, depth=depth, width=4).double().eval()
    adjacency = neighbours()
    scale = adjacency.sum(1).rsqrt()
    normalised = scale[:, None] * adjacency * scale
    x = FEATURES
    for number, layer in enumerate(model.layers):
        x = F.relu(x) if number else x
        weight, bias = layer.get_parameter("linear.weight"), layer.get_parameter("bias")
        x = normalised @ x @ weight.T + bias
    torch.testing.assert_close(model(NODES), x[NODES])


def test_gat_is_its_formula() -> None:
    model: GAT = gat(**ARGUMENTS, width=4, heads=2).double().eval()
    adjacency, x = neighbours(), FEATURES
    for number, layer in enumerate(model.layers):
        heads = 2 if number == 0 else 1
        weight = layer.get_parameter("linear.weight")
        outputs = []
        for head, part in enumerate(weight.chunk(heads)):
            values = (F.elu(x) if number else x) @ part.T
            sent = values @ layer.get_parameter("from_source")[head]
            received = values @ layer.get_parameter("from_target")[head]
            logits = F.leaky_relu(received[:, None] + sent, 0.2)
            outputs.append(logits.masked_fill(adjacency == 0, -torch.inf).softmax(1) @ values)
        x = torch.cat(outputs, 1) + layer.get_parameter("bias")
    torch.testing.assert_close(model(NODES), x[NODES])


@pytest.mark.parametrize("build", [gcn, gat])
def test_the_graph_is_not_among_the_weights_and_the_last_layer_stays_dense(
    build: Callable[..., nn.Module],
) -> None:
    model = build(**ARGUMENTS)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert list(prunable_parameters(model)) == ["layers.0.linear.weight"]
    everything = prunable_parameters(model, include_classifier=True)
    assert list(everything) == ["layers.0.linear.weight", "layers.1.linear.weight"]


def test_the_sizes_of_the_papers_on_cora() -> None:
    sizes: dict[str, Any] = {
        "num_classes": 7, "node_features": torch.zeros(2, 1433),
        "edge_index": torch.empty(2, 0, dtype=torch.int64),
    }  # fmt: skip
    for model, count in ((gcn(**sizes), 23_063), (gat(**sizes), 92_373)):
        assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["gcn", "gat"])
def test_they_learn_in_every_precision(model: str, precision: str, tmp_path: Path) -> None:
    record = tiny_run(
        tmp_path, *fitting(model), f"model={model}", "model.depth=2", "model.width=8",
        "scorer=snip", "training.epochs=60", f"training.precision={precision}",
    )  # fmt: skip
    first, last = record["history"][0], record["history"][-1]
    assert last["train_loss"] < 0.9 * first["train_loss"]


@pytest.mark.parametrize("build", [gcn, gat])
def test_in_bfloat16_they_are_nearly_what_they_are_in_float32(
    build: Callable[..., nn.Module],
) -> None:
    model = build(**ARGUMENTS | {"node_features": FEATURES.float()}).eval()
    exact = model(NODES)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(NODES)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 1}, {"dropout": 1.0}, {"heads": 0}])
def test_options_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}"):
        gat(**ARGUMENTS, **wrong)
