"""When two configurations are one experiment."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import record_in, tiny_run

from pai.errors import ConfigError
from pai.identity import digest, flatten
from pai.records import write_record


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0), (0, 0.0), (0, -0.0), (-3, -3.0), (2**53, 2.0**53), ([1, 2], [1.0, 2]),
        ([{"a": 1}], [{"a": 1.0}]), (10**22, 1e22), (-(10**16), -1e16), ((1, 2), [1.0, 2.0]),
    ],
    ids=repr,
)  # fmt: skip
def test_whole_numbers_are_the_same_however_they_are_written(one: Any, other: Any) -> None:
    assert flatten({"lr": one}) == flatten({"lr": other})
    assert digest({"lr": one}) == digest({"lr": other})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True), (0, False), (1.0, True), (1, "1"), (1.0, "1.0"), (1, 1.5), (0, None), (1, [1]),
        (0, float("nan")), (10**22, float("inf")), (0.1, 0.10000000000000002),
    ],
    ids=repr,
)  # fmt: skip
def test_other_values_stay_different(one: Any, other: Any) -> None:
    assert flatten({"lr": one}) != flatten({"lr": other})
    assert digest({"lr": one}) != digest({"lr": other})


def test_large_numbers_stay_readable() -> None:
    assert flatten({"lr": 1e30})["lr"] == "1e+30"
    assert flatten({"n": 10**16 + 1})["n"] == str(10**16 + 1)
    assert flatten({"n": 10**400})["n"] == str(10**400)


def test_a_run_is_continued_with_the_same_number_written_otherwise(tmp_path: Path) -> None:
    tiny_run(tmp_path, "training.epochs=0", "training.optimizer.lr=1.0")
    stored = record_in(tmp_path)
    lr = stored["config"]["training"]["optimizer"]["lr"]
    assert json.dumps(lr) == "1.0"
    stored["config"]["training"]["optimizer"]["lr"] = 1
    write_record(tmp_path, stored)
    assert tiny_run(tmp_path, "training.epochs=0", "training.optimizer.lr=1.0") == stored
    with pytest.raises(ConfigError, match="lr=1, not 2; choose"):
        tiny_run(tmp_path, "training.epochs=0", "training.optimizer.lr=2.0")
