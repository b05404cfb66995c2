"""Graphs: the karate club's published facts, Planetoid's files, a pickle that is not executed."""

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pai.data.download import fetch_files
from pai.data.graphs import undirected
from pai.data.inert_pickle import Call, parse
from pai.data.karate import KarateClub, karate_club
from pai.data.planetoid import Cora, read_planetoid
from pai.errors import ConfigError, RunError


def test_the_karate_club_is_the_published_graph() -> None:
    graph = karate_club()
    adjacency = torch.zeros(34, 34, dtype=torch.int64)
    adjacency[graph.edge_index[0], graph.edge_index[1]] = 1
    assert torch.equal(adjacency, adjacency.T)
    assert int(adjacency.sum()) == 2 * 78 == graph.edge_index.shape[1]
    degrees = adjacency.sum(1)
    assert (int(degrees[33]), int(degrees[0]), int(degrees[32])) == (17, 16, 12)
    assert int(degrees.min()) == 1
    assert int((adjacency @ adjacency @ adjacency).trace()) // 6 == 45  # triangles
    assert graph.labels.bincount().tolist() == [17, 17]
    assert (int(graph.labels[0]), int(graph.labels[33])) == (0, 1)


def test_the_parts_are_a_partition_with_the_same_number_of_each_class() -> None:
    data = KarateClub(split_seed=3).load()
    parts = (data.train, data.val, data.test)
    assert sorted(torch.cat([part.numbers for part in parts]).tolist()) == list(range(34))
    assert [part.labels.bincount().tolist() for part in parts] == [[10, 10], [3, 3], [4, 4]]
    assert all(torch.equal(part.labels, data.graph.labels[part.numbers]) for part in parts)
    other = KarateClub(split_seed=4).load()
    assert not torch.equal(other.train.numbers, data.train.numbers)
    assert data.spec.smallest_class == 10
    for wrong in ({"train_per_class": 0}, {"train_per_class": 14, "val_per_class": 3}):
        with pytest.raises(ValueError, match="train_per_class"):
            KarateClub(**wrong)


def test_batches_visit_every_node_once() -> None:
    data = KarateClub().load()
    for batches in (
        data.training_batches(7, 0, 0), data.batches(data.train, 7), data.warmup_batches(7, 0),
        data.scoring_batches(10, 7, 0),
    ):  # fmt: skip
        numbers = torch.cat([x for x, _ in batches])
        assert sorted(numbers.tolist()) == data.train.numbers.tolist()
        assert torch.equal(data.graph.labels[numbers], torch.cat([y for _, y in batches]))
    shares = [
        torch.cat([x for x, _ in data.training_batches(7, 0, 0, rank=rank, world_size=2)])
        for rank in range(2)
    ]
    assert sorted(torch.cat(shares).tolist()) == data.train.numbers.tolist()
    labels = torch.cat([y for _, y in data.scoring_batches(4, 3, 0)])
    assert labels.bincount().tolist() == [4, 4]
    with pytest.raises(ConfigError, match="class 0 has only 10 training nodes"):
        data.scoring_batches(11, 3, 0)


def test_edges_are_made_undirected_without_loops_and_doubles() -> None:
    edges = undirected(torch.tensor([[0, 1], [1, 0], [2, 2], [1, 2], [0, 1]]))
    assert edges.T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


# Pickles as Python 2 wrote them, put together by hand.


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def text(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value


def shape(*sides: int) -> bytes:
    return b"(" + b"".join(map(number, sides)) + b"t"


def array(values: Any, code: str) -> bytes:
    values = np.asarray(values, code)
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\n" + text(code.encode()) + b"K\x00K\x01\x87R"
    kind += b"(K\x03U\x01<NNN" + number(-1) + number(-1) + b"K\x00tb"
    state = b"(K\x01" + shape(*values.shape) + kind + b"\x89" + text(values.tobytes()) + b"t"
    return start + state + b"b"


def sparse(dense: Any) -> bytes:
    dense = np.asarray(dense)
    rows, columns = np.nonzero(dense)
    starts = np.searchsorted(rows, range(len(dense) + 1))
    parts = {"indptr": array(starts, "i4"), "indices": array(columns, "i4")}
    parts |= {"data": array(dense[rows, columns], "f4"), "_shape": shape(*dense.shape)}
    items = b"".join(text(key.encode()) + value for key, value in parts.items())
    return b"cscipy.sparse.csr\ncsr_matrix\n)\x81}(" + items + b"ub"


def mapping(graph: dict[int, list[int]]) -> bytes:
    items = b"".join(
        number(key) + b"](" + b"".join(map(number, values)) + b"e" for key, values in graph.items()
    )
    return b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R(" + items + b"u"


def whole(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def planetoid(**changes: bytes) -> dict[str, bytes]:
    """604 nodes: node v has feature v % 5 and class v % 2, edges from v to v + 1."""
    known, order = 601, [603, 601, 602]
    features, classes = np.eye(5), np.eye(2)
    files = {
        "allx": sparse(features[np.arange(known) % 5] * 2),
        "ally": array(classes[np.arange(known) % 2], "i4"),
        "y": array(classes[np.arange(4) % 2], "i4"),
        "tx": sparse(features[np.array(order) % 5] * 2),
        "ty": array(classes[np.array(order) % 2], "i4"),
        "graph": mapping({v: [v + 1, v] for v in range(603)}),
    }
    contents = {name: whole(body) for name, body in files.items()}
    return contents | {"test.index": "".join(f"{v}\n" for v in order).encode()} | changes


def test_planetoids_files_are_read() -> None:
    data = read_planetoid(planetoid(), normalise=True)
    nodes = torch.arange(604)
    assert torch.equal(data.graph.features, torch.eye(5)[nodes % 5])
    assert torch.equal(data.graph.labels, nodes % 2)
    assert data.graph.edge_index.shape == (2, 2 * 603)
    assert data.train.numbers.tolist() == [0, 1, 2, 3]
    assert data.val.numbers.tolist() == list(range(4, 504))
    assert data.test.numbers.tolist() == [601, 602, 603]
    assert float(read_planetoid(planetoid(), normalise=False).graph.features.max()) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("graph", b"garbage"), ("graph", whole(b"}")), ("graph", planetoid()["graph"][:-9]),
        ("graph", whole(mapping({0: [9999]}))), ("allx", whole(number(3))), ("allx", b""),
        ("tx", whole(array([1.0], "f4"))), ("ty", whole(array([[1, 0]], "i4"))),
        ("ally", whole(b"cnumpy\nndarray\n)R")), ("test.index", b"1\n2\n3\n"),
        ("y", whole(array(np.eye(2)[np.zeros(200, int)], "i4"))),
    ],
)  # fmt: skip
def test_damaged_files_are_errors(name: str, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_planetoid(planetoid(**{name: content}), normalise=True)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    command = f"touch {witness}".encode()
    found = parse(whole(b"cposix\nsystem\n" + text(command) + b"\x85R"))
    assert isinstance(found, Call)
    assert (found.name, found.arguments) == ("posix.system", (command,))
    for name in ("allx", "ally", "graph"):
        with pytest.raises(ValueError, match=r"."):
            bad = whole(b"cposix\nsystem\n" + text(command) + b"\x85R")
            read_planetoid(planetoid(**{name: bad}), normalise=True)
    assert not witness.exists()


def test_the_folder_of_cora(tmp_path: Path) -> None:
    folder = tmp_path / "cora"
    with pytest.raises(ConfigError, match=r"dataset\.root: .*ind\.cora\..* dataset\.download=true"):
        Cora(str(tmp_path), download=False).check()
    before = Cora(str(tmp_path)).check()
    assert (before.graph.features.shape, before.graph.num_classes) == ((2708, 1433), 7)
    folder.mkdir()
    for name, content in planetoid().items():
        (folder / f"ind.cora.{name}").write_bytes(content)
    for root in (tmp_path, folder):
        assert Cora(str(root)).check().describe() == Cora(str(tmp_path)).load().spec.describe()
    (folder / "ind.cora.ty").write_bytes(b"\x80\x02")
    with pytest.raises(RunError, match="damaged"):
        Cora(str(folder)).load()


def test_downloaded_files_are_checked_before_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {"http://host/a": b"first", "http://host/b": b"second"}
    digests = {url: hashlib.sha256(content).hexdigest() for url, content in contents.items()}

    def download(url: str, root: Path, filename: str) -> None:
        (root / filename).write_bytes(contents[url])

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    folder = tmp_path / "data" / "cora"
    with pytest.raises(RunError, match="http://host/b is not the file that was expected"):
        fetch_files(digests | {"http://host/b": "0" * 64}, folder)
    assert not folder.exists()
    fetch_files(digests, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "a": b"first", "b": b"second",
    }  # fmt: skip
    contents["http://host/a"] = b"changed"
    fetch_files(digests, folder)  # it is there already
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["cora"]
