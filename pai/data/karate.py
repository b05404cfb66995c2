"""Zachary's karate club: a small real graph that needs no download.

34 members of a university karate club and 78 pairs of them who met outside it, and on which side
each stood when the club split (Zachary 1977, Journal of Anthropological Research 33(4)).
"""

import functools
from dataclasses import dataclass

import torch

from pai.data.graphs import Graph, GraphSpec, NodeBundle, undirected
from pai.data.split import members_by_class
from pai.seeding import generator

# For each member (from 1, as in the paper) those of a higher number with whom there is a tie.
_TIES = {
    1: (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 18, 20, 22, 32),
    2: (3, 4, 8, 14, 18, 20, 22, 31),
    3: (4, 8, 9, 10, 14, 28, 29, 33),
    4: (8, 13, 14),
    5: (7, 11),
    6: (7, 11, 17),
    7: (17,),
    9: (31, 33, 34),
    10: (34,),
    14: (34,),
    15: (33, 34),
    16: (33, 34),
    19: (33, 34),
    20: (34,),
    21: (33, 34),
    23: (33, 34),
    24: (26, 28, 30, 33, 34),
    25: (26, 28, 32),
    26: (32,),
    27: (30, 34),
    28: (34,),
    29: (32, 34),
    30: (33, 34),
    31: (33, 34),
    32: (33, 34),
    33: (34,),
}
_MEMBERS = 34
# Who stayed with the instructor (member 1); the others went with the officers (member 34).
_INSTRUCTOR = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 17, 18, 20, 22)


@dataclass(frozen=True)
class KarateClub:
    """Two classes of 17 nodes; the feature of a node is its number, one-hot.

    There is no official split. Of each class ``train_per_class`` nodes at random are the train
    part, ``val_per_class`` the validation part and the rest the test part, with ``split_seed``: the
    same for every run seed. For tests and demonstrations: one test node is several per cent.
    """

    train_per_class: int = 10
    val_per_class: int = 3
    split_seed: int = 0

    def __post_init__(self) -> None:
        for option in ("train_per_class", "val_per_class"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} must be at least 1, got {getattr(self, option)}")
        most = _MEMBERS // 2 - 1
        if self.train_per_class + self.val_per_class > most:
            raise ValueError(
                f"train_per_class and val_per_class must leave a test node of 17 per class: "
                f"{self.train_per_class} + {self.val_per_class} is above {most}"
            )

    def check(self) -> GraphSpec:
        """Return the graph."""
        return self.load().spec

    def load(self) -> NodeBundle:
        """Return the bundle."""
        graph = karate_club()
        stream = generator(self.split_seed, "split")
        first, second = self.train_per_class, self.train_per_class + self.val_per_class
        train, val, test = [], [], []
        for members in members_by_class(graph.labels):
            shuffled = members[torch.randperm(len(members), generator=stream)]
            train.append(shuffled[:first])
            val.append(shuffled[first:second])
            test.append(shuffled[second:])
        parts = (torch.cat(part).sort().values for part in (train, val, test))
        return NodeBundle.from_positions(graph, *parts)


@functools.cache
def karate_club() -> Graph:
    """Return the graph; node v is member v + 1, class 0 is the instructor's."""
    pairs = [(one - 1, other - 1) for one, others in _TIES.items() for other in others]
    labels = torch.ones(_MEMBERS, dtype=torch.int64)
    labels[torch.tensor(_INSTRUCTOR) - 1] = 0
    return Graph(torch.eye(_MEMBERS), undirected(torch.tensor(pairs)), labels)
