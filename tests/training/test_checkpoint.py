import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pai.errors import RunError
from pai.training.checkpoint import load_checkpoint, save_checkpoint

STATE: dict[str, Any] = {
    "epoch": 3,
    "model": {"w": torch.tensor([1.5, -0.0, float("inf")]), "n": torch.tensor(7)},
    "history": [{"loss": 0.25, "epoch": 1}, {"loss": float("inf"), "epoch": 2}],
    "best": None,
    "name": "run",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


class Harmful:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def write_harmful(path: Path, *, wrapped: bool) -> Harmful:
    harmful = Harmful(path.parent / "executed")
    if wrapped:
        torch.save({"epoch": 1, "model": harmful}, path)
    else:
        path.write_bytes(pickle.dumps(harmful))
    return harmful


def test_a_state_is_loaded_as_it_was_saved(path: Path) -> None:
    save_checkpoint(path, STATE)
    loaded = load_checkpoint(path)
    assert loaded is not None
    weights = loaded.pop("model")
    assert loaded == {key: value for key, value in STATE.items() if key != "model"}
    for name, tensor in STATE["model"].items():
        assert weights[name].numpy().tobytes() == tensor.numpy().tobytes()
        assert weights[name].dtype == tensor.dtype


def test_no_checkpoint_is_none(path: Path) -> None:
    assert load_checkpoint(path) is None


def test_a_failed_write_keeps_the_old_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    save_checkpoint(path, STATE)
    content = path.read_bytes()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"epoch": 4})
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_named(path: Path, share: float) -> None:
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunError, match=r"cannot read checkpoint .*checkpoint\.pt"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"garbage", b"PK\x03\x04", b"\x80\x02.", bytes(1000)])
def test_a_file_that_is_no_checkpoint_is_named(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"cannot read checkpoint .*checkpoint\.pt"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")  # of the odd pickles this makes
def test_a_damaged_byte_never_gives_any_other_error(path: Path) -> None:
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    failed = 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            load_checkpoint(path)
        except RunError:
            failed += 1
    assert failed > 0


@pytest.mark.filterwarnings("ignore::UserWarning:torch")  # of the plain pickle's protocol
@pytest.mark.parametrize("wrapped", [False, True])
def test_code_in_a_checkpoint_never_runs(path: Path, wrapped: bool) -> None:
    harmful = write_harmful(path, wrapped=wrapped)
    with contextlib.suppress(Exception):  # of which type: see the next test
        load_checkpoint(path)
    assert not harmful.target.exists()


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_with_code_is_refused_by_name(path: Path, wrapped: bool) -> None:
    write_harmful(path, wrapped=wrapped)
    with pytest.raises(RunError, match=r"cannot read checkpoint .*checkpoint\.pt"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [None, 5, [1], "text"])
def test_a_content_that_is_no_state_is_named(path: Path, content: Any) -> None:
    torch.save(content, path)
    with pytest.raises(RunError, match=r"checkpoint\.pt is no checkpoint .*; remove it to start"):
        load_checkpoint(path)
