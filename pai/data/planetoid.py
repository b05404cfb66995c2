"""The citation graph Cora in the files of Planetoid (Yang et al. 2016, arXiv 1603.08861).

The files are pickles. They are read by :mod:`pai.data.inert_pickle`, which executes nothing.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pai.data.download import fetch_files
from pai.data.graphs import Graph, GraphSpec, NodeBundle, undirected
from pai.data.inert_pickle import Call, parse
from pai.data.options import usable_path
from pai.errors import ConfigError, RunError

_URL = "https://github.com/kimiyoung/planetoid/raw/master/data"
_SHA256 = {
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
}
_VAL = 500  # the nodes after the training nodes: the split that the field uses


@dataclass(frozen=True)
class Cora:
    """2,708 papers in 7 subjects, 5,278 citations, 1,433 words that occur in a paper or not.

    The public split: 20 training nodes of each class, 500 validation and 1,000 test nodes. With
    ``normalise`` the features of a node are divided by their sum, as is usual. ``root`` is the
    folder of the files ``ind.cora.*``, or the one in which ``download`` makes a folder ``cora``.
    """

    root: str
    download: bool = True
    normalise: bool = True

    def check(self) -> GraphSpec:
        """Return the graph; before a download, an empty one of the published sizes.

        Raises:
            ConfigError: the files are not there and ``download`` is off, or are not complete.
        """
        folder = self._folder()
        if self.download and not folder.is_dir():
            return GraphSpec(_empty(), 20)
        return self._read(folder).spec

    def load(self) -> NodeBundle:
        """Return the bundle, downloading it first if that is needed and allowed.

        Raises:
            RunError: the download failed, or a file is damaged.
        """
        folder = self._folder()
        if self.download and not folder.is_dir():
            fetch_files({f"{_URL}/{name}": digest for name, digest in _SHA256.items()}, folder)
        return self._read(folder)

    def _folder(self) -> Path:
        base = usable_path("dataset.root", self.root)
        return base if (base / "ind.cora.graph").is_file() else base / "cora"

    def _read(self, folder: Path) -> NodeBundle:
        files = tuple((name.rpartition("cora.")[2], _content(folder / name)) for name in _SHA256)
        try:
            return _read_once(files, self.normalise)
        except ValueError as error:
            raise RunError(f"the files of Cora in {folder} are damaged: {error}") from error


@functools.cache
def _empty() -> Graph:
    """Return a graph of Cora's sizes without edges."""
    edges = torch.empty(2, 0, dtype=torch.int64)
    return Graph(torch.zeros(2708, 1433), edges, torch.arange(2708) % 7)


@functools.lru_cache(maxsize=2)
def _read_once(files: tuple[tuple[str, bytes], ...], normalise: bool) -> NodeBundle:
    return read_planetoid(dict(files), normalise=normalise)


def read_planetoid(files: dict[str, bytes], *, normalise: bool) -> NodeBundle:
    """Return the bundle from the contents of the files ``tx allx y ty ally graph test.index``.

    ``allx`` and ``ally`` are features and classes (one-hot) of all nodes but the test nodes, the
    first ``len(y)`` of them the training nodes; ``tx`` and ``ty`` those of the test nodes, whose
    numbers are the lines of ``test.index``.

    Raises:
        ValueError: a file is no such data, or they do not fit together.
    """
    test = torch.tensor([int(line) for line in files["test.index"].split()])
    known, tested = _sparse(files["allx"]), _sparse(files["tx"])
    classes, test_classes = _array(parse(files["ally"])), _array(parse(files["ty"]))
    train = len(_array(parse(files["y"])))
    count = len(known) + len(tested)
    if sorted(test.tolist()) != list(range(len(known), count)):
        raise ValueError("test.index does not number the nodes after those of allx")
    if (len(classes), len(test_classes)) != (len(known), len(tested)):
        raise ValueError("there are not as many classes as nodes")
    features, labels = torch.zeros(count, known.shape[1]), torch.zeros(count, dtype=torch.int64)
    features[: len(known)], features[test] = known, tested
    labels[: len(known)] = torch.from_numpy(classes.argmax(1))
    labels[test] = torch.from_numpy(test_classes.argmax(1))
    if normalise:
        features /= features.sum(1, keepdim=True).clamp(min=1)
    edges = undirected(_pairs(parse(files["graph"]), count))
    val = torch.arange(train, train + _VAL)
    if train + _VAL > len(known):
        raise ValueError(f"there are not {_VAL} nodes for validation")
    graph = Graph(features, edges, labels)
    return NodeBundle.from_positions(graph, torch.arange(train), val, test.sort().values)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"dataset.root: {path} cannot be read ({error.strerror}); give the folder of "
            f"Planetoid's files ind.cora.*, or set dataset.download=true"
        ) from error


def _pairs(graph: Any, count: int) -> Tensor:
    """Return the edges ``[*, 2]`` of a dictionary from nodes to lists of nodes."""
    neighbours = graph.items if isinstance(graph, Call) else graph
    pairs = torch.tensor([(one, other) for one, others in neighbours.items() for other in others])
    if pairs.numel() == 0 or pairs.dtype != torch.int64 or not 0 <= int(pairs.max()) < count:
        raise ValueError("graph is not from numbers of nodes to lists of them")
    return pairs


def _sparse(content: bytes) -> Tensor:
    """Return a pickled ``scipy.sparse.csr_matrix`` as a dense float32 matrix."""
    found = parse(content)
    if not isinstance(found, Call) or not isinstance(found.state, dict):
        raise ValueError("no sparse matrix")
    state = found.state
    rows, columns = state.get(b"_shape", (0, 0))
    starts, indices, values = (_array(state.get(key)) for key in (b"indptr", b"indices", b"data"))
    if len(starts) != rows + 1 or len(indices) != len(values) or starts[-1] != len(values):
        raise ValueError("a sparse matrix whose parts do not fit together")
    dense = torch.zeros(rows, columns)
    where = np.repeat(np.arange(rows), np.diff(starts))
    dense[torch.from_numpy(where), torch.from_numpy(indices.astype(np.int64))] = torch.from_numpy(
        values.astype(np.float32)
    )
    return dense


def _array(found: Any) -> Any:
    """Return a pickled numpy array of plain numbers."""
    if not isinstance(found, Call) or not isinstance(found.state, tuple) or len(found.state) != 5:
        raise ValueError("no array")
    _, shape, kind, fortran, content = found.state
    if not isinstance(kind, Call) or not kind.arguments or not isinstance(content, bytes):
        raise ValueError("no array of numbers")
    code = kind.arguments[0].decode()
    if code not in ("i4", "i8", "f4", "f8"):
        raise ValueError(f"an array of type {code!r}")
    array = np.frombuffer(content, np.dtype(code).newbyteorder("<")).reshape(
        shape, order="F" if fortran else "C"
    )
    return array.astype(array.dtype.newbyteorder("="))
