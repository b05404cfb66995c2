"""Training before the mask: what is rewound, what is kept, what it costs, and how it resumes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import torchrun
from tiny import check, plan, record_in, tiny_run, untimed
from torch import Tensor, nn

import pai.runner
import pai.scoring
import pai.training.loop
from pai.errors import ConfigError, RunError
from pai.masking.rounds import TrainAndPrune
from pai.records import write_bytes_atomically
from pai.scorers.magnitude import Magnitude
from pai.seeding import derive_seed, global_seed
from pai.training.loop import train
from pai.training.step import MaskedStep

TICKET = (
    "baseline=lottery_ticket",
    "baseline.rounds=2",
    "baseline.rewind_step=25",
    "training.epochs=2",
    "scorer=magnitude",
    "dataset.crop_padding=1",
)  # fmt: skip  (an epoch has 21 steps)
AFTER_TRAINING = ("baseline=magnitude_after_training", "scorer=magnitude", "baseline.epochs=1")


class Spy(Magnitude):
    """Scores by magnitude and notes the weights and buffers it saw."""

    def __init__(self) -> None:
        object.__setattr__(self, "seen", [])

    def score(self, model: nn.Module, batches: Any, parameters: Any, **rest: Any) -> Any:
        self.seen.append({name: v.clone() for name, v in model.state_dict().items()})
        return super().score(model, batches, parameters, **rest)

    seen: list[dict[str, Tensor]]


def initial(*overrides: str) -> dict[str, Tensor]:
    """Return the weights that the run starts with."""
    tiny = plan(*overrides)
    with global_seed(0, "initialization"):
        return tiny.build_model().state_dict()


def states_of_training(run_dir: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Any:
    """Return the state dict after each step of a dense run, with no code of rewinding involved."""
    states: list[dict[str, Tensor]] = []
    real = MaskedStep.__call__

    def note(self: MaskedStep, *arguments: Any) -> Any:
        found = real(self, *arguments)
        states.append({name: v.clone() for name, v in self._model.state_dict().items()})
        return found

    with monkeypatch.context() as patch:
        patch.setattr(MaskedStep, "__call__", note)
        tiny_run(run_dir, "scorer=none", *overrides)
    return states


def assert_masked(weights: dict[str, Tensor], expected: dict[str, Tensor], run_dir: Path) -> None:
    """Assert that kept weights are bit for bit the expected ones, pruned ones zero."""
    mask = load_file(run_dir / "mask.safetensors")
    assert any(not keep.all() for keep in mask.values())
    for name, value in expected.items():
        want = value * mask[name] if name in mask else value
        assert torch.equal(weights[name], want), name


def test_rewinding_to_the_start_restores_the_initial_weights_bit_for_bit(tmp_path: Path) -> None:
    spy = Spy()
    tiny_run(
        tmp_path / "run", "baseline=lottery_ticket", "baseline.rounds=2", "baseline.epochs=1",
        "training.epochs=0", scorer=spy,
    )  # fmt: skip
    untrained = tiny_run(tmp_path / "pai", "training.epochs=0")
    assert untrained["baseline"] == {
        "steps": 0, "epochs": 0, "training_flops_dense": 0, "training_flops_masked": 0,
        "rounds": [],
    }  # fmt: skip
    weights = load_file(tmp_path / "run" / "model.safetensors")
    warm = load_file(tmp_path / "pai" / "model.safetensors")  # the initial weights, warmed up
    start = {n: warm[n] if "running" in n or "num" in n else v for n, v in initial().items()}
    assert_masked(weights, start, tmp_path / "run")
    name = "stages.0.0.conv1.weight"
    assert not torch.equal(spy.seen[0][name], start[name])  # scored after the training
    assert int((spy.seen[1][name] == 0).sum()) > 0  # the second round trains a pruned network


@pytest.mark.parametrize("step", [7, 21])
def test_rewinding_to_a_step_restores_the_weights_of_that_step(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def note(model: nn.Module, *rest: Any, **options: Any) -> Any:
        state = {name: v.clone() for name, v in model.state_dict().items()}
        started.append((state, options["first_step"]))
        return train(model, *rest, **options)

    dense = states_of_training(tmp_path / "dense", monkeypatch, "training.epochs=2")
    assert len(dense) == 2 * 21
    monkeypatch.setattr("pai.runner.train", note)
    spy = Spy()
    record = tiny_run(
        tmp_path / "run", "baseline=lottery_ticket", "baseline.rounds=1",
        f"baseline.rewind_step={step}", "training.epochs=2", scorer=spy,
    )  # fmt: skip
    for name, value in dense[-1].items():
        assert torch.equal(spy.seen[0][name], value)  # the first training is the dense run's
    ((state, first_step),) = started
    assert_masked(state, dense[step - 1], tmp_path / "run")
    assert first_step == step
    assert [row["epoch"] for row in record["history"]] == [1, 2][step // 21 :]


def test_training_goes_on_from_the_step_with_its_batches_and_learning_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Tensor, float]] = []
    real = MaskedStep.__call__

    def note(self: MaskedStep, inputs: Tensor, targets: Tensor, factor: float, mixed: Any) -> Any:
        calls.append((inputs.clone(), factor))
        return real(self, inputs, targets, factor, mixed)

    monkeypatch.setattr(MaskedStep, "__call__", note)
    tiny_run(tmp_path, *TICKET)
    assert len(calls) == 42 + 17 + 17
    for later in (calls[42:59], calls[59:]):
        for (inputs, factor), (again, same) in zip(calls[25:42], later, strict=True):
            assert torch.equal(inputs, again)
            assert factor == same


def test_pruning_at_a_step_of_the_runs_own_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = states_of_training(tmp_path / "dense", monkeypatch, "training.epochs=2")
    spy = Spy()
    record = tiny_run(
        tmp_path / "run", "baseline=pretrain", "baseline.prune_step=25", "baseline.rewind_step=25",
        "training.epochs=2", scorer=spy,
    )  # fmt: skip
    for name, value in dense[24].items():
        assert torch.equal(spy.seen[0][name], value)
    spent = record["baseline"]
    assert (spent["steps"], spent["epochs"]) == (25, 25 / 21)
    images, cost = record["data"]["train"], record["cost"]["forward_flops_dense"]
    assert spent["training_flops_dense"] == 3 * (images + 4 * 64) * cost
    assert [row["epoch"] for row in record["history"]] == [2]
    kept = tiny_run(tmp_path / "kept", "baseline=pretrain", "baseline.prune_step=3")
    assert kept["baseline"]["steps"] == 3
    assert len(kept["history"]) == 1  # the whole training follows


def test_magnitude_after_training_keeps_the_largest_trained_weights(tmp_path: Path) -> None:
    spy = Spy()
    tiny_run(tmp_path, *AFTER_TRAINING, "training.epochs=0", scorer=spy)
    (trained,) = spy.seen
    mask = load_file(tmp_path / "mask.safetensors")
    assert_masked(load_file(tmp_path / "model.safetensors"), trained, tmp_path)
    kept = torch.cat([trained[name][keep].abs() for name, keep in mask.items()])
    removed = torch.cat([trained[name][~keep].abs() for name, keep in mask.items()])
    assert kept.min() >= removed.max()
    assert not torch.equal(trained["fc.weight"], initial()["fc.weight"])


def test_each_training_that_keeps_the_weights_has_an_order_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def note(*arguments: Any, **options: Any) -> Any:
        seeds.append(options["seed"])
        return train(*arguments, **options)

    monkeypatch.setattr("pai.rounds.train", note)
    tiny_run(tmp_path / "kept", *AFTER_TRAINING, "baseline.rounds=2")
    assert seeds == [derive_seed(0, "round/0"), derive_seed(0, "round/1")]
    seeds.clear()
    tiny_run(tmp_path / "rewound", *AFTER_TRAINING, "baseline.rounds=2", "baseline.rewind_step=0")
    assert seeds == [0, 0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed lottery-ticket run, and its directory after every write of a checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    moments: list[str] = []

    def write(path: Path, content: bytes) -> None:
        write_bytes_atomically(path, content)
        moments.append(path.name)
        shutil.copytree(folder / "run", folder / str(len(moments)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pai.training.checkpoint.write_bytes_atomically", write)
        tiny_run(folder / "run", *TICKET)
    assert moments == [
        "rounds.pt", "round-1.pt", "rounds.pt", "round-1.pt", "rounds.pt", "round-2.pt",
        "rounds.pt", "checkpoint.pt",
    ]  # fmt: skip
    return folder


def without_speed(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"history": untimed(row["history"])} for row in rounds]


@pytest.mark.parametrize("moment", range(1, 9))
def test_a_run_killed_at_any_stage_ends_bit_for_bit_as_the_undisturbed_one(
    moment: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = shutil.copytree(whole / str(moment), tmp_path / "run")
    epochs: list[int] = []
    real = pai.training.loop._train_epoch

    def count(*arguments: Any) -> Any:
        epochs.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr("pai.training.loop._train_epoch", count)
    tiny_run(run_dir, *TICKET)
    for name in ("mask.safetensors", "model.safetensors"):
        assert (run_dir / name).read_bytes() == (whole / "run" / name).read_bytes()
    ours, theirs = record_in(run_dir), record_in(whole / "run")
    for key in ("status", "metrics", "mask", "cost", "warmup", "data", "config"):
        assert ours[key] == theirs[key], key
    assert untimed(ours["history"]) == untimed(theirs["history"])
    rounds = [record["baseline"].pop("rounds") for record in (ours, theirs)]
    assert without_speed(rounds[0]) == without_speed(rounds[1])
    assert ours["baseline"] == theirs["baseline"]
    assert set(ours["timing_s"]) == set(theirs["timing_s"])
    assert len(epochs) == {1: 4, 2: 3, 3: 3, 4: 2, 5: 2, 6: 1, 7: 1, 8: 0}[moment]
    assert {path.name for path in run_dir.iterdir()} == {
        "record.json", "mask.safetensors", "model.safetensors", "scores.json",
    }  # fmt: skip


def test_rounds_of_another_run_are_not_trusted(whole: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(whole / "6", tmp_path / "run")
    (run_dir / "record.json").unlink()
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    with pytest.raises(ConfigError, match=r"holds rounds\.pt but no record of a run"):
        tiny_run(run_dir, *TICKET, "seed=1")
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before


def test_damaged_rounds_are_named(whole: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(whole / "6", tmp_path / "run")
    (run_dir / "rounds.pt").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"(?s)rounds\.pt.*remove it to start over"):
        tiny_run(run_dir, *TICKET)
    (run_dir / "rounds.pt").unlink()
    record = tiny_run(run_dir, *TICKET)
    assert record["mask"] == record_in(whole / "run")["mask"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"done": 99}, "it has 99 of 2 rounds"), ({"rows": []}, "does not tell of 1 rounds"),
        ({"rows": [{}]}, "what its rounds cost"), ({"model": {}}, "its model does not hold"),
        ({"mask": None}, "its mask does not hold"), ({"rewind": 5}, "what it rewinds to does not"),
        ({"more": 1}, "its keys are"),
    ],
    ids=str,
)  # fmt: skip
def test_rounds_that_are_not_of_this_run_are_named(
    change: dict[str, Any], said: str, whole: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(whole / "6", tmp_path / "run")
    path = run_dir / "rounds.pt"
    state = torch.load(path, weights_only=True)
    assert state["done"] == 1
    torch.save(state | change, path)
    with pytest.raises(RunError, match=rf"rounds\.pt is no checkpoint .*{said}.*; remove it to"):
        tiny_run(run_dir, *TICKET)


def test_the_record_says_what_was_spent(whole: Path) -> None:
    record = record_in(whole / "run")
    spent, cost = record["baseline"], record["cost"]
    first, second = spent["rounds"]
    prunable = record["mask"]["prunable"]
    assert [row["kept"] for row in spent["rounds"]] == [
        round((1 - (1 - 0.1**0.5)) * prunable), record["mask"]["kept"],
    ]  # fmt: skip
    assert (first["steps"], second["steps"], spent["steps"]) == (42, 17, 59)
    assert (first["epochs"], spent["epochs"]) == (2, 59 / 21)
    images = record["data"]["train"]
    seen = 2 * images + (images - 4 * 64)  # the second round starts after four batches of 64
    assert first["training_flops_dense"] == 3 * 2 * images * cost["forward_flops_dense"]
    assert first["training_flops_masked"] == first["training_flops_dense"]  # the dense network's
    assert second["training_flops_masked"] < second["training_flops_dense"]
    assert spent["training_flops_dense"] == 3 * seen * cost["forward_flops_dense"]
    assert record["timing_s"]["pretrain"] > 0
    assert [len(row["history"]) for row in spent["rounds"]] == [2, 1]
    assert 0 <= first["metrics"]["test_accuracy"] <= 1


def test_a_weight_that_a_round_removed_never_returns(tmp_path: Path) -> None:
    masks: list[Any] = []
    real = pai.scoring.score_and_select

    def note(*arguments: Any, **options: Any) -> Any:
        masks.append(real(*arguments, **options))
        return masks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pai.runner, "score_and_select", note)
        tiny_run(
            tmp_path, "baseline=lottery_ticket", "baseline.rounds=3", "scorer=random",
            "scope=erk", "training.epochs=0", "baseline.epochs=1",
        )  # fmt: skip
    total = sum(keep.numel() for keep in masks[0].values())
    kept = [sum(int(keep.sum()) for keep in mask.values()) for mask in masks]
    assert kept == [round(0.1 ** (k / 3) * total) for k in (1, 2, 3)]
    for earlier, later in ((masks[0], masks[1]), (masks[1], masks[2])):
        assert all(bool((later[name] <= earlier[name]).all()) for name in later)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["baseline.rounds=0"], ["baseline: rounds", "0"]),
        (["baseline.epochs=-1"], ["baseline: epochs", "-1"]),
        (["baseline.rounds=3"], ["baseline: epochs is 0", "use a schedule"]),
        (["baseline=pretrain", "baseline.rewind_step=-1"], ["baseline: rewind_step", "-1"]),
        (["baseline=pretrain", "baseline.prune_step=0"], ["baseline: prune_step", "0"]),
        (["baseline.prune_step=9"], ["baseline: epochs is 0"]),
        (["baseline=lottery_ticket", "schedule=linear"], ["baseline: rounds=5", "oneshot"]),
        (["baseline=lottery_ticket", "training.epochs=0"], ["baseline: epochs: null", "is 0"]),
        (["baseline=lottery"], ["baseline: 'lottery' is not a choice", "'lottery_ticket'"]),
    ],
)
def test_rounds_that_cannot_work_are_refused(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check("logger=none", *arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["baseline=pretrain"], "prune_step=50 is beyond .* 1 epochs of 21 steps, 21 in all"),
        (["baseline=lottery_ticket", "baseline.rewind_step=21"], "21 is not before the pruning"),
        (
            ["baseline=pretrain", "baseline.prune_step=9", "baseline.rewind_step=10"],
            "rewind_step=10 is not before the pruning after 9 steps",
        ),
        (
            ["baseline=pretrain", "baseline.epochs=2", "baseline.prune_step=25",
             "baseline.rewind_step=21"],
            "rewind_step=21 is not before the end of the run's training: 1 epochs of 21 steps",
        ),
    ],
)  # fmt: skip
def test_steps_that_no_training_reaches_are_refused_before_any(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pai.rounds.train", None)
    with pytest.raises(ConfigError, match=f"baseline: {words}" if words[0] == "p" else words):
        tiny_run(tmp_path, *arguments)


@pytest.mark.parametrize("order", [1, -1])
def test_a_scorer_on_the_command_line_wins_over_the_baselines_own(order: int) -> None:
    from tiny import config

    assert "magnitude" in config("baseline=lottery_ticket")["scorer"]["_target_"]
    chosen = ["scorer=snip", "baseline=lottery_ticket"][::order]
    assert "gradient_scorer" in config(*chosen)["scorer"]["_target_"]


def test_densities_have_a_constant_ratio() -> None:
    found = TrainAndPrune(rounds=3, epochs=1).sparsities(0.9)
    assert found == pytest.approx([1 - 0.1 ** (1 / 3), 1 - 0.1 ** (2 / 3), 0.9])
    assert found[-1] == 0.9


@pytest.mark.slow
def test_two_processes_find_the_ticket_of_one(tmp_path: Path) -> None:
    settings = (
        "model.depth=8", "model.width=4", "baseline=lottery_ticket", "baseline.rounds=2",
        "baseline.rewind_step=25", "training.epochs=2", "sparsity=0.5",
    )  # fmt: skip
    done = torchrun(*settings, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record, mask = record_in(tmp_path / "run"), load_file(tmp_path / "run" / "mask.safetensors")
    assert record["baseline"]["steps"] == 59
    assert record["mask"]["kept"] == round(0.5 * record["mask"]["prunable"])
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(not weights[name][~keep].any() for name, keep in mask.items())
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"mask.safetensors"}
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_pass_over_a_graph_is_counted_once_for_all_its_nodes(tmp_path: Path) -> None:
    record = tiny_run(
        tmp_path, "dataset=karate", "model=gcn", "scorer=magnitude", "sparsity=0.5",
        "scoring.samples_per_class=2", "baseline=magnitude_after_training", "training.epochs=3",
    )  # fmt: skip
    spent, forward = record["baseline"], record["cost"]["forward_flops_dense"]
    assert spent["training_flops_dense"] == 3 * spent["steps"] * forward
