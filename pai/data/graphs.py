"""Graphs whose nodes are classified: a sample is the number of a node.

The whole graph, features of all nodes and all edges, belongs to the model (transductive setting,
Yang et al. 2016, arXiv 1603.08861); classes of other nodes than the training nodes are not trained
on.

Legend: V nodes, E directed edges, F features, K classes, B nodes of a batch.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pai.data.shares import Batch, IndexedBatches
from pai.data.split import chosen_members, members_by_class
from pai.data.task import NODES, Task
from pai.seeding import generator


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph with features and a class for each node."""

    features: Tensor  # [V, F] float32
    edge_index: Tensor  # [2, E] int64: from, to; each edge in both directions, no loops, no doubles
    labels: Tensor  # [V] int64

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return int(self.labels.max()) + 1

    def describe(self) -> dict[str, Any]:
        """Return sizes and a hash of everything."""
        digest = hashlib.sha256()
        for tensor in (self.features, self.edge_index, self.labels):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return {
            "nodes": len(self.labels), "edges": self.edge_index.shape[1] // 2,
            "features": self.features.shape[1], "sha256": digest.hexdigest(),
        }  # fmt: skip


def undirected(pairs: Tensor) -> Tensor:
    """Return ``[2, E]`` with both directions of the ``pairs`` ``[*, 2]``, sorted, each once.

    Loops are left out.
    """
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return torch.cat([pairs, pairs.flip(1)]).unique(dim=0).T.contiguous()


@dataclass(frozen=True)
class GraphSpec:
    """The graph itself, and how many training nodes the smallest class has."""

    graph: Graph
    smallest_class: int
    task: ClassVar[Task] = NODES

    @property
    def training_samples(self) -> int:
        """Training nodes, if all classes are as large as the smallest."""
        return self.smallest_class * self.graph.num_classes

    @property
    def scoring_classes(self) -> int:
        """How many times ``samples_per_class`` nodes are scored on."""
        return self.graph.num_classes

    def room(self) -> str:
        """Say how many nodes the smallest class has."""
        return f"the smallest class has {self.smallest_class} training nodes"

    def arguments(self, parameters: Collection[str]) -> dict[str, Any]:
        """Return the classes, the features ``[V, F]`` and the edges ``[2, E]``."""
        return {
            "num_classes": self.graph.num_classes, "node_features": self.graph.features,
            "edge_index": self.graph.edge_index,
        }  # fmt: skip

    def inputs(self) -> Tensor:
        """Return the numbers of the first two nodes."""
        return torch.arange(2)

    def outputs(self) -> tuple[int, ...]:
        """Return the shape of the logits of two nodes."""
        return 2, self.graph.num_classes

    def says(self) -> str:
        """Return the sizes of the graph."""
        nodes, features = self.graph.features.shape
        return f"a graph of {nodes} nodes with {features} features"

    def describe(self) -> dict[str, Any]:
        """Return the sizes and the hash of the graph."""
        return self.graph.describe()


@dataclass(frozen=True)
class Nodes:
    """The nodes of one part: their numbers ``[N]`` and classes ``[N]`` (int64)."""

    numbers: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.numbers)

    def to(self, device: torch.device) -> "Nodes":
        """Return the part on ``device``."""
        return Nodes(self.numbers.to(device), self.labels.to(device))

    def read(self, positions: Tensor) -> Batch:
        """Return numbers and classes ``[B]`` of the nodes at ``positions``."""
        positions = positions.to(self.numbers.device)
        return self.numbers[positions], self.labels[positions]


@dataclass(frozen=True)
class NodeBundle:
    """Train, validation and test nodes of one graph, which share no node."""

    graph: Graph
    train: Nodes
    val: Nodes
    test: Nodes
    task: ClassVar[Task] = NODES

    @classmethod
    def from_positions(cls, graph: Graph, train: Tensor, val: Tensor, test: Tensor) -> "NodeBundle":
        """Return the bundle of three lists of node numbers."""
        parts = (Nodes(numbers, graph.labels[numbers]) for numbers in (train, val, test))
        return cls(graph, *parts)

    @property
    def spec(self) -> GraphSpec:
        """What a model must fit."""
        counts = self.train.labels.bincount(minlength=self.graph.num_classes)
        return GraphSpec(self.graph, int(counts.min()))

    def to(self, device: torch.device) -> "NodeBundle":
        """Return the bundle with its batches on ``device``."""
        train, val, test = (part.to(device) for part in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    def describe(self) -> dict[str, Any]:
        """Return the sizes and the hash of the graph."""
        return {"graph": self.graph.describe()}

    def batches(
        self, part: Nodes, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> IndexedBatches:
        """Return ``part`` in its stored order."""
        order = torch.arange(len(part))
        return IndexedBatches(
            part.read, batch_size, order, "nodes", rank=rank, world_size=world_size
        )

    def warmup_batches(self, batch_size: int, seed: int) -> IndexedBatches:
        """Return the train part in one seeded random order."""
        order = torch.randperm(len(self.train), generator=generator(seed, "warmup_order"))
        return IndexedBatches(self.train.read, batch_size, order, "nodes")

    def training_batches(
        self, batch_size: int, seed: int, epoch: int, *, rank: int = 0, world_size: int = 1
    ) -> IndexedBatches:
        """Return the train part for one epoch, in an order of its own."""
        order = torch.randperm(len(self.train), generator=generator(seed, f"order/{epoch}"))
        return IndexedBatches(
            self.train.read, batch_size, order, "nodes", rank=rank, world_size=world_size
        )

    def scoring_batches(self, samples_per_class: int, batch_size: int, seed: int) -> IndexedBatches:
        """Return ``samples_per_class`` train nodes of each class, shuffled.

        Raises:
            ConfigError: a class of the train part has fewer nodes than asked for.
        """
        stream = generator(seed, "scoring_subset")
        classes = members_by_class(self.train.labels, self.graph.num_classes)
        chosen = chosen_members(classes, samples_per_class, stream, "nodes")
        order = chosen[torch.randperm(len(chosen), generator=stream)]
        return IndexedBatches(self.train.read, batch_size, order, "nodes")
