"""Runs that are interrupted and go on in another environment: the record tells all parts."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import record_in, tiny_run

import pai.runner
from pai.environment import decisive_changes, describe_environment, earlier_environments
from pai.training.loop import train

SETTINGS = ("training.epochs=4",)


class StopError(Exception):
    """Ends a run."""


def part(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, *, until: str = "", peak_gib: float = 1.0,
    **environment: Any,
) -> dict[str, Any]:  # fmt: skip
    """Let a run go on until the method ``until`` of its output is called; return its record."""

    def stop(*arguments: Any, **options: Any) -> None:
        raise StopError

    def told(device: torch.device) -> dict[str, Any]:
        return describe_environment(device) | {"git_sha": "abc", "git_dirty": False} | environment

    with monkeypatch.context() as patch:
        patch.setattr(pai.runner, "describe_environment", told)
        patch.setattr("pai.environment.peak_memory_gib", lambda device: peak_gib)
        if not until:
            return tiny_run(run_dir, *SETTINGS)
        patch.setattr(f"pai.output.Output.{until}", stop)
        with pytest.raises(StopError):
            tiny_run(run_dir, *SETTINGS)
    return record_in(run_dir)


def test_the_record_keeps_where_each_part_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = part(tmp_path, monkeypatch, until="epoch", git_sha="abc", threads=2)
    assert first["earlier_environments"] == []
    assert "another environment" not in caplog.text
    with caplog.at_level(logging.WARNING, logger="pai"):
        second = part(tmp_path, monkeypatch, until="epoch", git_sha="def", git_dirty=True)
    (warning,) = [line for line in caplog.messages if "another environment" in line]
    threads = torch.get_num_threads()
    assert warning == (
        "the run goes on in another environment than its earlier part (commit abc, now def; "
        f"uncommitted changes False, now True; threads 2, now {threads}); the record has both"
    )
    assert second["earlier_environments"] == [first["environment"]]
    caplog.clear()
    third = part(tmp_path, monkeypatch, until="model", git_sha="def", git_dirty=True)
    assert third["earlier_environments"] == [first["environment"]]
    assert "another environment" not in caplog.text
    last = part(tmp_path, monkeypatch, git_sha="abc", threads=2)
    assert last["status"] == "completed"
    assert last["environment"] == first["environment"]
    assert last["earlier_environments"] == [second["environment"]]
    assert record_in(tmp_path) == last


def test_the_peak_of_memory_is_that_of_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert part(tmp_path, monkeypatch, until="model", peak_gib=5.0)["peak_memory_gib"] == 5.0
    assert part(tmp_path, monkeypatch, until="model", peak_gib=2.0)["peak_memory_gib"] == 5.0
    assert part(tmp_path, monkeypatch, peak_gib=7.0)["peak_memory_gib"] == 7.0


def test_the_peak_of_a_part_that_was_killed_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(record_in(tmp_path)["peak_memory_gib"])  # all that a kill would leave
        return train(*arguments, **options)

    monkeypatch.setattr(pai.runner, "train", spy)
    part(tmp_path, monkeypatch, peak_gib=3.0)
    assert seen == [3.0]


def test_a_part_of_which_nothing_is_kept_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    part(tmp_path, monkeypatch, until="new_mask", git_sha="abc", peak_gib=9.0)
    record = part(tmp_path, monkeypatch, git_sha="def")
    assert record["earlier_environments"] == []
    assert record["peak_memory_gib"] == 1.0
    assert "another environment" not in caplog.text


def test_other_versions_are_kept_without_a_warning() -> None:
    before = {"git_sha": "abc", "python": "3.11.7", "packages": {"torch": "2.15.0", "timm": "1"}}
    after = before | {"python": "3.12.0", "packages": {"torch": "2.15.0", "timm": "2"}}
    assert earlier_environments({"environment": before}, after) == [before]
    assert decisive_changes(before, after) == []


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({"packages": {"torch": "2.16.0"}}, ["torch 2.15.0, now 2.16.0"]),
        ({"device": "cuda:0"}, ["device cpu, now cuda:0"]),
        ({"processes": 2}, []),  # the older record did not tell
        ({"git_sha": None}, ["commit abc, now None"]),
    ],
    ids=str,
)
def test_what_decides_is_told(after: dict[str, Any], told: list[str]) -> None:
    before = {"git_sha": "abc", "packages": {"torch": "2.15.0"}, "device": "cpu"}
    assert decisive_changes(before, before | after) == told
