import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import environment

from pai.records import (
    FILE_NAME,
    FolderInUseError,
    alone_in,
    read_record,
    write_bytes_atomically,
    write_record,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


def finite(value: Any) -> Any:
    """The record's rule for numbers, spelled out for plain JSON values."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return value


@settings(max_examples=30, deadline=None)
@given(record=st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_a_record_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    write_record(folder, record)
    assert read_record(folder) == finite(record)
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    write_record(tmp_path, {"loss": nan, "deep": [{"a": (inf, -inf, 1e308, -0.5, 3)}], "ok": True})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / FILE_NAME).read_text()
    stored = json.loads(text, parse_constant=refuse)
    assert stored == {"loss": None, "deep": [{"a": [None, None, 1e308, -0.5, 3]}], "ok": True}


def test_writing_a_record_does_not_change_it(tmp_path: Path) -> None:
    record = {"loss": float("inf"), "list": [(1, 2)]}
    write_record(tmp_path, record)
    assert record == {"loss": float("inf"), "list": [(1, 2)]}


def test_a_missing_record_is_none(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "no such folder") is None


def test_a_record_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_record(tmp_path, {"status": "running", "history": list(range(1000))})
    write_record(tmp_path, {"status": "completed"})
    assert read_record(tmp_path) == {"status": "completed"}


def fail(*arguments: Any, **options: Any) -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_record_and_no_other_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path, {"status": "running"})
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="disk full"):
            write_record(tmp_path, {"status": "completed"})
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert read_record(tmp_path) == {"status": "running"}


def test_an_interrupted_write_leaves_no_file_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_record(tmp_path, {"status": "running"})
    assert list(tmp_path.iterdir()) == []


def test_what_json_cannot_hold_is_refused_before_the_file_is_touched(tmp_path: Path) -> None:
    write_record(tmp_path, {"status": "running"})
    with pytest.raises(TypeError):
        write_record(tmp_path, {"status": object()})
    assert read_record(tmp_path) == {"status": "running"}
    assert len(list(tmp_path.iterdir())) == 1


def test_the_content_is_on_disk_before_the_name_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def noting(step: str) -> Callable[..., Any]:
        real = getattr(os, step)

        def call(*arguments: Any, **options: Any) -> Any:
            if step == "replace":
                assert Path(arguments[0]).read_bytes() == b"content"
                assert Path(arguments[0]).parent == tmp_path  # one file system: rename is atomic
            steps.append(step)
            return real(*arguments, **options)

        return call

    for step in ("fsync", "replace"):
        monkeypatch.setattr(os, step, noting(step))
    write_bytes_atomically(tmp_path / "file", b"content")
    assert steps == ["fsync", "replace"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    write_record(tmp_path, {})
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"status": "run', b"null", b"[1, 2]", b'"text"', b"7", b"\xff\xfe\x00", b"{} {}"],
)
def test_a_file_that_is_no_record_is_named_and_kept(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"record\.json is not a valid record"):
        read_record(tmp_path)
    assert path.read_bytes() == content


def test_every_truncation_of_a_record_is_noticed(tmp_path: Path) -> None:
    write_record(tmp_path, {"status": "completed", "metrics": {"test_accuracy": 0.5}})
    content = (tmp_path / FILE_NAME).read_bytes().rstrip()
    for length in range(len(content)):
        (tmp_path / FILE_NAME).write_bytes(content[:length])
        with pytest.raises(ValueError, match="not a valid record"):
            read_record(tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from pai.records import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], env=environment(), stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FolderInUseError), alone_in(tmp_path, patience_s=0.2):
            pass
        other.kill()
        with alone_in(tmp_path):
            assert not list(tmp_path.iterdir())
    with alone_in(tmp_path, patience_s=0):
        pass


def test_an_error_inside_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), alone_in(tmp_path):
        raise KeyError
    with alone_in(tmp_path, patience_s=0):
        pass
