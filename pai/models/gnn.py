"""Graph networks for node classification: GCN and GAT, with gathers and sums over edges.

A model holds its graph: a batch only says which nodes to classify. The graph belongs to the data,
so it is not among the saved weights.

Legend: V nodes, E edges with loops, F features, D width, H heads, K classes, B nodes of a batch.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GraphNetwork(nn.Module):
    """Dropout and a convolution, twice or more, over the whole graph; then the rows asked for."""

    data_buffers: ClassVar[tuple[str, ...]] = ("features",)  # data, not state

    features: Tensor
    source: Tensor
    target: Tensor

    def __init__(self, node_features: Tensor, edge_index: Tensor, dropout: float) -> None:
        super().__init__()
        loops = torch.arange(len(node_features)).expand(2, -1)
        source, target = torch.cat([edge_index, loops], dim=1)
        self.register_buffer("features", node_features, persistent=False)
        self.register_buffer("source", source, persistent=False)
        self.register_buffer("target", target, persistent=False)
        self.dropout = nn.Dropout(dropout)


class GraphConvolution(nn.Module):
    """``A X W^T + b`` with the normalised adjacency ``A = D^(-1/2) (adjacency + 1) D^(-1/2)``."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Tensor, source: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return ``[V, D]`` for ``[V, F]``; ``weight [E]`` has the entries of A."""
        messages = self.linear(x)[source] * weight[:, None]
        return x.new_zeros(len(x), messages.shape[1]).index_add(0, target, messages) + self.bias


class GCN(GraphNetwork):
    """Graph convolutional network (Kipf and Welling 2017, arXiv 1609.02907)."""

    weight: Tensor

    def __init__(
        self, num_classes: int, node_features: Tensor, edge_index: Tensor, width: int, depth: int,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__(node_features, edge_index, dropout)
        degree = self.target.bincount(minlength=len(node_features)).to(node_features.dtype)
        weight = (degree[self.source] * degree[self.target]).rsqrt()
        self.register_buffer("weight", weight, persistent=False)
        widths = [node_features.shape[1], *[width] * (depth - 1), num_classes]
        self.layers = nn.ModuleList(map(GraphConvolution, widths, widths[1:]))

    def forward(self, nodes: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of the nodes with these numbers ``[B]``."""
        x = self.features
        for number, layer in enumerate(self.layers):
            x = self.dropout(x if number == 0 else F.relu(x))
            x = layer(x, self.source, self.target, self.weight)
        return x[nodes]


class GraphAttention(nn.Module):
    """Sums over neighbours, weighted by a softmax of ``LeakyReLU(a . W x_i + b . W x_j)``."""

    def __init__(
        self, in_features: int, out_features: int, heads: int, dropout: float, *, concatenate: bool
    ) -> None:
        super().__init__()
        self.heads, self.concatenate = heads, concatenate
        self.linear = nn.Linear(in_features, heads * out_features, bias=False)
        self.from_source = nn.Parameter(torch.empty(heads, out_features))
        self.from_target = nn.Parameter(torch.empty(heads, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features * (heads if concatenate else 1)))
        self.dropout = nn.Dropout(dropout)
        for parameter in (self.linear.weight, self.from_source, self.from_target):
            nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return ``[V, H D]``, or ``[V, D]`` averaged over heads, for ``[V, F]``."""
        values = self.linear(x).unflatten(1, (self.heads, -1))  # [V, H, D]
        sent = (values * self.from_source).sum(2)[source]
        received = (values * self.from_target).sum(2)[target]
        share = _softmax(F.leaky_relu(sent + received, 0.2), target, len(x))  # [E, H]
        messages = values[source] * self.dropout(share)[:, :, None]
        # autocast makes the values bfloat16, the shares stay float32
        mixed = torch.zeros_like(values, dtype=messages.dtype).index_add(0, target, messages)
        return (mixed.flatten(1) if self.concatenate else mixed.mean(1)) + self.bias


class GAT(GraphNetwork):
    """Graph attention network (Velickovic et al. 2018, arXiv 1710.10903)."""

    def __init__(
        self, num_classes: int, node_features: Tensor, edge_index: Tensor, width: int, depth: int,
        heads: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__(node_features, edge_index, dropout)
        layers, features = [], node_features.shape[1]
        for _ in range(depth - 1):
            layers.append(GraphAttention(features, width, heads, dropout, concatenate=True))
            features = width * heads
        layers.append(GraphAttention(features, num_classes, 1, dropout, concatenate=False))
        self.layers = nn.ModuleList(layers)

    def forward(self, nodes: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of the nodes with these numbers ``[B]``."""
        x = self.features
        for number, layer in enumerate(self.layers):
            x = layer(self.dropout(x if number == 0 else F.elu(x)), self.source, self.target)
        return x[nodes]


def gcn(
    *,
    num_classes: int,
    node_features: Tensor,
    edge_index: Tensor,
    width: int = 16,
    depth: int = 2,
    dropout: float = 0.5,
) -> GCN:
    """Build a GCN; the defaults are those of the paper on Cora (23,063 parameters).

    Args:
        num_classes: outputs.
        node_features: ``[V, F]``.
        edge_index: ``[2, E]``, from and to, each edge in both directions, no loops.
        width: hidden units.
        depth: layers; the last one is the classifier and stays dense.
        dropout: probability, in front of each layer.

    Raises:
        ValueError: an option is out of range.
    """
    _check(width, depth, dropout)
    return GCN(num_classes, node_features, edge_index, width, depth, dropout)


def gat(
    *,
    num_classes: int,
    node_features: Tensor,
    edge_index: Tensor,
    width: int = 8,
    depth: int = 2,
    heads: int = 8,
    dropout: float = 0.6,
) -> GAT:
    """Build a GAT; the defaults are those of the paper on Cora (8 heads of 8 units, then 1).

    Arguments as in :func:`gcn`; ``width`` is that of one head, and ``dropout`` also falls on the
    attention.

    Raises:
        ValueError: an option is out of range.
    """
    _check(width, depth, dropout)
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    return GAT(num_classes, node_features, edge_index, width, depth, heads, dropout)


def _check(width: int, depth: int, dropout: float) -> None:
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if depth < 2:
        raise ValueError(f"depth must be at least 2, got {depth}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


def _softmax(logits: Tensor, target: Tensor, count: int) -> Tensor:
    """Return the softmax of ``logits [E, H]`` over the edges that have the same target."""
    index = target[:, None].expand_as(logits)
    highest = logits.new_full((count, logits.shape[1]), -torch.inf)
    highest = highest.scatter_reduce(0, index, logits.detach(), "amax")  # any constant would do
    weights = (logits - highest[target]).exp()
    return weights / torch.zeros_like(highest).index_add(0, target, weights)[target]
