"""Runs that fail, are killed, or are started again where a run already is."""

import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tiny import LABELS, TINY, check, config, plan, record_in, tiny_run, untimed

import pai.runner
import pai.training.loop
from pai.data.bundle import DataBundle
from pai.data.digits import Digits
from pai.data.split import Split
from pai.errors import ConfigError, RunError
from pai.runner import run
from pai.scorers.base import Scorer

SETTINGS = (
    "scorer=hts", "scorer.num_probes=1", "scorer.batch_size=null", "dataset.crop_padding=1",
    "training.epochs=3",
)  # fmt: skip
Event = Callable[[str, Path], None]


@dataclass
class Spy:
    """A tracker that calls ``on_event`` with the name of each event and the run directory."""

    on_event: Event
    seen: list[str] = field(default_factory=list)

    @contextmanager
    def session(self, config: Mapping[str, Any], labels: Any, run_dir: Path) -> Iterator[Any]:
        self.run_dir = run_dir
        self._note("start")
        yield self
        self._note("end")

    def log_epoch(self, row: Mapping[str, float]) -> None:
        self._note(f"epoch {row['epoch']}")

    def log_scores(self, scores: Mapping[str, Any]) -> None:
        self._note("scores")

    def log_mask(self, report: Mapping[str, Any], path: Path) -> None:
        self._note("mask")

    def log_result(self, record: Mapping[str, Any]) -> None:
        self._note("result")

    def _note(self, event: str) -> None:
        self.seen.append(event)
        self.on_event(event, self.run_dir)


EVENTS = ["start", "scores", "mask", "epoch 1", "epoch 2", "epoch 3", "result", "end"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never disturbed; beside it, copies of its directory at every event."""
    folder = tmp_path_factory.mktemp("whole")

    def copy(event: str, run_dir: Path) -> None:
        shutil.copytree(run_dir, folder / event)

    spy = Spy(copy)
    tiny_run(folder / "run", *SETTINGS, tracker=spy)
    assert spy.seen == EVENTS
    return folder


def assert_same_result(run_dir: Path, whole: Path) -> None:
    """Assert that a run ended bit for bit as the undisturbed one."""
    for name in ("mask.safetensors", "model.safetensors"):
        assert (run_dir / name).read_bytes() == (whole / "run" / name).read_bytes()
    ours, theirs = record_in(run_dir), record_in(whole / "run")
    for key in ("status", "error", "metrics", "mask", "cost", "warmup", "data", "config"):
        assert ours[key] == theirs[key], key
    assert untimed(ours["history"]) == untimed(theirs["history"])
    assert set(ours["timing_s"]) == set(theirs["timing_s"])
    assert not (run_dir / "checkpoint.pt").exists()


@pytest.mark.parametrize("event", EVENTS)
def test_a_run_killed_at_any_moment_ends_as_if_undisturbed(
    event: str, whole: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(whole / event, tmp_path / "run")
    assert record_in(run_dir)["status"] == "running"
    spy = Spy(lambda event, run_dir: None)
    tiny_run(run_dir, *SETTINGS, tracker=spy)
    assert_same_result(run_dir, whole)
    assert [event for event in spy.seen if event.startswith("epoch")] == EVENTS[3:6]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_interrupted_after_an_epoch_continues_after_it(
    error: type[BaseException], whole: Path, tmp_path: Path
) -> None:
    def interrupt(event: str, run_dir: Path) -> None:
        if event == "epoch 2":
            raise error("stopped")

    with pytest.raises(error, match="stopped"):
        tiny_run(tmp_path, *SETTINGS, tracker=Spy(interrupt))
    failed = record_in(tmp_path)
    assert failed["status"] == "failed"
    assert failed["error"] == f"{error.__name__}: stopped"
    tiny_run(tmp_path, *SETTINGS)
    assert_same_result(tmp_path, whole)
    assert record_in(tmp_path)["timing_s"]["train"] > failed["timing_s"]["train"]


def test_a_run_that_broke_within_an_epoch_repeats_only_that_epoch(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    real = pai.training.loop._train_epoch

    def break_in_second(model: Any, batches: Any, *rest: Any) -> Any:
        epochs.append(rest[-1])
        done = real(model, batches, *rest)
        if len(epochs) == 2:
            raise RuntimeError("out of memory")
        return done

    monkeypatch.setattr(pai.training.loop, "_train_epoch", break_in_second)
    with pytest.raises(RuntimeError, match="out of memory"):
        tiny_run(tmp_path, *SETTINGS)
    tiny_run(tmp_path, *SETTINGS)
    assert epochs == [0, 1, 1, 2]
    assert_same_result(tmp_path, whole)


def test_a_completed_run_is_not_repeated(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pai")
    run_dir = shutil.copytree(whole / "run", tmp_path / "run")
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run_dir.iterdir()}

    def fail(event: str, run_dir: Path) -> None:
        raise AssertionError("work was done")

    record = tiny_run(run_dir, *SETTINGS, tracker=Spy(fail), dataset=None, scorer=None)
    assert record == record_in(run_dir)
    assert caplog.messages == [f"{run_dir} is complete already: nothing is done"]
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run_dir.iterdir()}
    assert after == before


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"junk", "cannot be read: "),
        (save({"conv1.weight": torch.ones(4, 1, 3, 3, dtype=torch.bool)}),
         "is not the mask of the record"),
    ],
    ids=["junk", "another"],
)  # fmt: skip
def test_a_mask_beside_a_completed_record_that_is_not_its_own_is_named(
    content: bytes, phrase: str, whole: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(whole / "run", tmp_path / "run")
    (run_dir / "mask.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^hydra\.run\.dir: .*safetensors {phrase}.*remove"):
        tiny_run(run_dir, *SETTINGS)
    (run_dir / "mask.safetensors").unlink()
    assert tiny_run(run_dir, *SETTINGS) == record_in(run_dir)


@pytest.mark.parametrize("event", ["run", "epoch 1", "start"])
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sparsity=0.8"], "sparsity=0.9, not 0.8"),
        (["training.epochs=4"], "training.epochs=3, not 4"),
        (["training.epochs=4", "seed=1"], "seed=0, not 1"),  # the first in alphabetical order
        (["scorer.num_probes=2", "scoring.memory_gib=1"], "scorer.num_probes=1, not 2"),
        (["scoring.batch_size=3"], "scoring.batch_size=100, not 3"),
        (["+seeds.data=7"], "seeds.data=(not there), not 7"),
    ],
    ids=str,
)
def test_another_configuration_in_the_same_directory_is_refused(
    event: str, overrides: list[str], said: str, whole: Path
) -> None:
    before = (whole / event / "record.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        tiny_run(whole / event, *SETTINGS, *overrides)
    assert str(caught.value) == (
        f"hydra.run.dir: {whole / event} holds a run with {said}; choose another directory, or "
        f"remove this one"
    )
    assert (whole / event / "record.json").read_bytes() == before


@pytest.mark.parametrize("what", ["train", "sha256"])
def test_other_data_under_the_same_configuration_are_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(event: str, run_dir: Path) -> None:
        if event == "epoch 2":
            raise KeyboardInterrupt

    def other(self: Digits) -> DataBundle[Split]:
        data = load(self)
        if what == "train":
            return replace(data, train=data.train.subset(torch.arange(1000)))
        images = data.test.images.clone()
        images[7, 0, 3, 4] ^= 1
        return replace(data, test=Split(images, data.test.labels))

    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, *SETTINGS, tracker=Spy(stop))
    load, before = Digits.load, record_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Digits, "load", other)
        with pytest.raises(ConfigError, match=rf"^dataset: data\.{what} was .* restore the data"):
            tiny_run(tmp_path, *SETTINGS)
    after = record_in(tmp_path)
    assert after["data"] == before["data"] and after["mask"] == before["mask"]
    assert tiny_run(tmp_path, *SETTINGS)["status"] == "completed"


def test_in_a_sweep_the_setting_that_chose_the_directory_is_named(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole / "epoch 2", tmp_path / "sweep" / "job")
    place = ["hydra.sweep.dir=sweep", "hydra.sweep.subdir=job"]
    check("-m", *TINY, *SETTINGS, *place)
    with pytest.raises(ConfigError, match=r"^hydra\.sweep\.dir: .* sparsity=0\.9, not 0\.8; "):
        check("-m", *TINY, *SETTINGS, *place, "sparsity=0.8")


@pytest.mark.parametrize("event", ["run", "start", "epoch 2"])
def test_what_only_changes_how_fast_it_computes_and_what_is_told_may_differ(
    event: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = shutil.copytree(whole / event, tmp_path / "run")
    monkeypatch.setenv("PAI_CACHE", str(tmp_path / "cache"))
    others = ("scoring.memory_gib=0.5", "logger=wandb")
    before, after = config(*TINY, *SETTINGS), plan(*SETTINGS, *others).config
    assert before["scoring"]["cache_dir"] != after["scoring"]["cache_dir"]
    tiny_run(run_dir, *SETTINGS, *others, tracker=Spy(lambda event, run_dir: None))
    for name in ("mask.safetensors", "model.safetensors"):
        assert (run_dir / name).read_bytes() == (whole / "run" / name).read_bytes()
    stored = record_in(run_dir)["config"]
    assert stored == (record_in(whole / "run")["config"] if event == "run" else after)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": "compl', "\xff"])
def test_a_damaged_record_is_never_overwritten(content: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"record\.json is not a valid record"):
        tiny_run(tmp_path)
    assert (tmp_path / "record.json").read_text(encoding="latin-1") == content


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_named(damage: bytes, whole: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(whole / "epoch 2", tmp_path / "run")
    (run_dir / "checkpoint.pt").write_bytes(damage)
    with pytest.raises(RunError, match=r"checkpoint\.pt"):
        tiny_run(run_dir, *SETTINGS)
    assert record_in(run_dir)["status"] == "failed"
    (run_dir / "checkpoint.pt").unlink()  # as the message says
    tiny_run(run_dir, *SETTINGS)
    assert_same_result(run_dir, whole)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_a_mask_that_is_not_the_one_trained_with_is_named(
    damage: str, whole: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(whole / "epoch 2", tmp_path / "run")
    path = run_dir / "mask.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        other = {name: ~keep for name, keep in load_file(path).items()}
        save_file(other, path)
    with pytest.raises(RunError, match=r"mask\.safetensors .*; remove checkpoint\.pt"):
        tiny_run(run_dir, *SETTINGS)
    (run_dir / "checkpoint.pt").unlink()  # as the message says
    tiny_run(run_dir, *SETTINGS)
    assert_same_result(run_dir, whole)


def test_what_a_killed_process_left_half_written_is_removed(whole: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(whole / "epoch 2", tmp_path / "run")
    (run_dir / ".checkpoint.pt.abcd.tmp").write_bytes(b"half")
    tiny_run(run_dir, *SETTINGS)
    assert_same_result(run_dir, whole)
    (run_dir / "checkpoint.pt").touch()  # killed after the last record, before the clean-up
    (run_dir / ".record.json.abcd.tmp").touch()
    tiny_run(run_dir, *SETTINGS)
    assert {path.name for path in run_dir.iterdir()} == {
        "record.json", "mask.safetensors", "model.safetensors", "scores.json",
    }  # fmt: skip


def test_the_time_before_a_kill_is_counted(whole: Path) -> None:
    moments = [EVENTS[position] for position in (4, 5, 6)]
    clocks = [record_in(whole / event)["timing_s"] for event in moments]
    for earlier, later in itertools.pairwise(clocks):
        assert 0 < earlier["train"] < later["train"]
        assert 0 < earlier["total"] < later["total"]


def test_the_record_is_there_from_the_start(whole: Path) -> None:
    started = record_in(whole / "start")
    assert started["status"] == "running"
    assert started["error"] is None
    assert started["mask"] is None
    assert started["config"] == plan(*SETTINGS).config
    assert started["environment"]["packages"]["torch"]
    masked = record_in(whole / "mask")
    assert masked["mask"] == record_in(whole / "run")["mask"]
    assert (whole / "mask" / "mask.safetensors").exists()
    assert [len(record_in(whole / event)["history"]) for event in EVENTS[3:]] == [0, 1, 2, 3, 3]


def test_a_failed_run_says_why_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[dict[str, Any]] = []

    def train(*arguments: Any, **options: Any) -> Any:
        during.append(record_in(tmp_path))
        raise RuntimeError("CUDA error:\nsomething bad")

    monkeypatch.setattr(pai.runner, "train", train)
    with pytest.raises(RuntimeError, match="something bad"):
        tiny_run(tmp_path, "scorer=snip")
    failed = record_in(tmp_path)
    assert during[0]["status"] == "running"
    assert failed["status"] == "failed"
    assert failed["error"] == "RuntimeError: CUDA error:\nsomething bad"
    assert failed["mask"] == during[0]["mask"]
    assert failed["mask"]["kept"] == int(
        sum(keep.sum() for keep in load_file(tmp_path / "mask.safetensors").values())
    )
    assert failed["timing_s"].keys() >= {"data", "warmup", "score", "mask", "train", "total"}
    assert failed["peak_memory_gib"] > 0
    assert not (tmp_path / "model.safetensors").exists()


class Broken(Scorer):
    """Gives one score that is no number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, model: Any, batches: Any, parameters: Any, **rest: Any) -> Any:
        scores = {name: torch.ones_like(p) for name, p in parameters.items()}
        scores["conv1.weight"][0, 0, 0, 0] = self.value
        return scores


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_fail_the_run(value: float, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"1 of 36 scores of 'conv1\.weight' are NaN or infinite"):
        tiny_run(tmp_path, scorer=Broken(value))
    failed = record_in(tmp_path)
    assert failed["status"] == "failed"
    assert "conv1.weight" in failed["error"]
    assert failed["mask"] is None
    assert not (tmp_path / "mask.safetensors").exists()


def test_a_loss_that_is_no_number_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"training loss became .* training\.optimizer\.lr"):
        tiny_run(tmp_path, "training.optimizer.lr=1e30")
    assert record_in(tmp_path)["status"] == "failed"
    assert record_in(tmp_path)["metrics"] == {}


def test_a_session_that_cannot_start_fails_the_run(tmp_path: Path) -> None:
    def refuse(event: str, run_dir: Path) -> None:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        run(plan(tracker=Spy(refuse)), tmp_path, LABELS)
    assert record_in(tmp_path)["error"] == "OSError: no disk"


def other_epochs(state: dict[str, Any]) -> dict[str, Any]:
    """Return a history that lacks its first epoch."""
    return state | {"history": state["history"][1:]}


def other_weights(state: dict[str, Any]) -> dict[str, Any]:
    """Return a model with a tensor of another shape."""
    return state | {"model": {**state["model"], "fc.weight": torch.zeros(10, 3)}}


def another_best(state: dict[str, Any]) -> dict[str, Any]:
    """Return a best epoch that is better than it was."""
    return state | {"best": state["best"] | {"val_accuracy": 1.0}}


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nothing": (lambda state: {}, r"its keys are \[\]"),
    "none": (lambda state: None, "a NoneType and not a dictionary"),
    "list": (lambda state: [1], "a list and not a dictionary"),
    "far epoch": (lambda state: state | {"epoch": 10**30}, "its epoch is 1000.*000, none of the 3"),
    "epoch 0": (lambda state: state | {"epoch": 0}, "its epoch is 0, none of the 3 of the tr"),
    "epoch 1.0": (lambda state: state | {"epoch": 1.0}, r"its epoch is 1\.0"),
    "another epoch": (lambda state: state | {"epoch": 3}, "not that of the epochs 1 to 3"),
    "history": (other_epochs, "its history is not that of the epochs 1 to 2"),
    "text": (lambda state: state | {"history": "text"}, "its history is 'text'"),
    "no numbers": (
        lambda state: state | {"history": [row | {"lr": "x"} for row in state["history"]]},
        "something else than numbers",
    ),
    "model": (lambda state: state | {"model": None}, "its model does not hold the tensors"),
    "shape": (other_weights, r"its model has no tensor 'fc\.weight' of shape \(10, 16\)"),
    "best": (lambda state: state | {"best": None}, "its best epoch is None"),
    "another best": (another_best, "its best epoch is none of its history"),
    "optimizer": (lambda state: state | {"optimizer": {}}, "its optimizer is no state of one"),
    "groups": (
        lambda state: state | {"optimizer": state["optimizer"] | {"param_groups": []}},
        "its optimizer is for other parameters",
    ),
    "momentum": (
        lambda state: state | {"optimizer": state["optimizer"] | {"state": {0: 5}}},
        "its optimizer has no state of parameter 0",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_is_not_of_this_run_is_named(
    damage: str, whole: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(whole / "epoch 2", tmp_path / "run")
    path = run_dir / "checkpoint.pt"
    change, said = DAMAGE[damage]
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(RunError) as caught:
        tiny_run(run_dir, *SETTINGS)
    assert re.fullmatch(
        rf"{path} is no checkpoint of this run: .*{said}.*; remove it to start over",
        str(caught.value),
    )
    assert record_in(run_dir)["status"] == "failed"
    path.unlink()  # as the message says
    tiny_run(run_dir, *SETTINGS)
    assert_same_result(run_dir, whole)
