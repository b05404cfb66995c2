"""Records below folders as one result set."""

import importlib.util
import json
import time
from pathlib import Path

import pytest
from sweep_records import LAYERS, record, write

from pai.errors import ConfigError
from pai.identity import digest, flatten
from pai.records import write_record
from pai.reports.collect import collect


def test_every_record_is_found_wherever_it_is_and_once(tmp_path: Path) -> None:
    write(tmp_path / "a", record(seed=0))
    write(tmp_path / "a" / "deeper [1] *", record(seed=1))
    write(tmp_path / 'b\'s "odd"; name', record(seed=2))
    found = collect(tmp_path, tmp_path / "a", tmp_path / "." / 'b\'s "odd"; name')
    assert sorted(run.seed for run in found.runs) == [0, 1, 2]
    assert found.unreadable == ()
    assert len(collect(tmp_path / "a").runs) == 2


def test_what_is_no_record_is_told_by_name(tmp_path: Path) -> None:
    write(tmp_path, record())
    for name, content in {
        "torn": b'{"status": "comp', "list": b"[1, 2]", "bytes": b'{"status": "\xff"}',
        "other": b'{"status": 1}', "empty": b"",
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_bytes(content)
    (tmp_path / "folder" / "record.json").mkdir(parents=True)
    found = collect(tmp_path)
    assert len(found.runs) == 1
    told = {out.folder.name: out.reason for out in found.unreadable}
    assert set(told) == {"torn", "list", "bytes", "other", "empty"}
    assert "not a JSON object" in told["torn"]
    assert "not a JSON object" in told["list"]
    assert "utf-8" in told["bytes"]
    assert told["other"] == "no record of a run: no valid status, config, seed"


def test_what_is_nested_too_deeply_too_long_or_of_another_type_is_told(tmp_path: Path) -> None:
    write(tmp_path, record())
    whole = json.dumps(record())
    for name, content in {
        "open": 200_000 * "[", "deep": 100_000 * '{"a":' + "1" + 100_000 * "}",
        "long": f'{whole[:-1]}, "a": {10_000 * "9"}}}',
        "times": json.dumps(record() | {"timing_s": [1], "metrics": "x"}),
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(content)
    found = collect(tmp_path)
    assert len(found.runs) == 1
    told = {out.folder.name: out.reason for out in found.unreadable}
    assert "not a JSON object" in told["open"]
    assert told["deep"].startswith("unreadable: maximum recursion depth exceeded")
    assert told["long"].startswith("unreadable: Exceeds the limit")
    assert told["times"] == "no record of a run: no valid metrics, timing_s"


def test_the_frame_has_a_line_per_run_and_the_keys_of_the_record(tmp_path: Path) -> None:
    failed = record("hts", status="failed", error="boom", mask=None, metrics={"test_accuracy": ...})
    frame = collect(write(tmp_path, record("snip", seed=1), failed)).frame().set_index("run_dir")
    first, second = frame.loc[str(tmp_path / "run0")], frame.loc[str(tmp_path / "run1")]
    assert first["choices.scorer"] == "snip"
    assert (first["seed"], first["config.sparsity"], first["metrics.test_accuracy"]) == (
        1,
        0.9,
        0.5,
    )
    assert (first["mask.kept"], first["timing_s.score"]) == (100, 2.0)
    assert first["environment.packages.torch"] == "2.15.0"
    assert (second["status"], second["error"]) == ("failed", "boom")
    assert frame["metrics.test_accuracy"].isna().tolist() == [False, True]
    assert not [column for column in frame if str(column).startswith(("history", "mask.layers"))]


def test_layers_are_in_the_order_of_the_network(tmp_path: Path) -> None:
    found = collect(write(tmp_path, record(sparsity=0.5), record(mask=None)))
    layers = found.layers
    assert layers["name"].tolist() == [name for name, _ in LAYERS]
    assert layers["position"].tolist() == [0, 1, 2]
    assert layers["kept"].tolist() == [50, 150, 300]
    assert layers["density"].tolist() == [0.5] * 3
    assert set(found.layers_by_run) == {str(tmp_path / "run0")}


def test_a_thousand_records_take_seconds(tmp_path: Path) -> None:
    many = [
        {
            "name": f"stages.{i}.conv.weight",
            "total": 100,
            "kept": 10,
            "density": 0.1,
            "shape": [100],
        }
        for i in range(60)
    ]
    entry = record(mask={"layers": many}, history=[{"epoch": i, "loss": 0.1} for i in range(160)])
    for seed in range(1000):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "record.json").write_text("")
        if seed == 0:
            write_record(folder, entry)
            text = (folder / "record.json").read_bytes()
        (folder / "record.json").write_bytes(text.replace(b'"seed": 0', b'"seed": %d' % seed))
    start = time.process_time()
    found = collect(tmp_path)
    assert len(found.frame()) == len(found.runs) == 1000
    assert len(found.layers) == 60_000
    assert time.process_time() - start < 10  # measured: under 2


def test_a_choice_that_is_missing_is_none_or_the_component(tmp_path: Path) -> None:
    (run,) = collect(write(tmp_path, record("hts", choices={"scorer": ...}))).runs
    assert run.value("scorer") == "hutchinson_scorer"
    assert run.value("baseline") == "none"
    assert run.value("training.optimizer.lr") == 0.05
    assert run.value("warmup") == "bn_stats"
    assert run.value("nothing.there") == "none"


def test_none_with_epochs_is_no_pruning_at_initialization(tmp_path: Path) -> None:
    node = {"_target_": "pai.masking.rounds.TrainAndPrune", "rounds": 1, "epochs": 1}
    chosen = record(choices={"baseline": "none"}, config={"baseline": node})
    (run,) = collect(write(tmp_path, chosen)).runs
    assert run.baseline and run.choice("baseline") == "TrainAndPrune"


@pytest.mark.parametrize(("epochs", "reference"), [(0, False), (None, True), (3, True)])
def test_without_choices_a_baseline_is_one_that_trains(
    epochs: int | None, reference: bool, tmp_path: Path
) -> None:
    node = {"_target_": "pai.masking.rounds.TrainAndPrune", "rounds": 1, "epochs": epochs}
    (run,) = collect(write(tmp_path, record(choices=..., config={"baseline": node}))).runs
    assert run.baseline is reference


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"device": "cuda"}, True), ({"logger": {"_target_": "other"}}, True),
        ({"scoring": {"cache_dir": None, "memory_gib": 3.0}}, True),
        ({"seed": 5}, False), ({"training": {"epochs": 4}}, False),
        ({"scorer": {"num_probes": 3}}, False), ({"dataset": {"root": "elsewhere"}}, False),
    ],
)  # fmt: skip
def test_the_digest_is_that_of_the_experiment(changes: dict[str, object], same: bool) -> None:
    base, changed = record()["config"], record(config=changes)["config"]
    assert (digest(base) == digest(changed)) is same
    assert digest(dict(reversed(base.items()))) == digest(base)


def test_configurations_are_flattened_to_leaves() -> None:
    tree = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}, "f": None}
    assert flatten(tree) == {"a.b": "1", "a.c.d": "[1, 2]", "e": "{}", "f": "null"}


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: not a folder"):
        collect(tmp_path / "nowhere")


def test_without_the_extra_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"duckdb, pandas: not installed.*pai\[reports\]"):
        collect(Path())
