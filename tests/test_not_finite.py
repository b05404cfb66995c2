"""NaN and infinity, wherever they arise: the run stops, says where, and keeps what it has."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY, command, plan, record_in, tiny_run, untimed
from torch import Tensor, nn

import pai
from pai.errors import RunError
from pai.finite import source_of
from pai.training.lr_schedules import Constant
from pai.warmup import BatchNormWarmup, NoWarmup

STEPS = 21  # of an epoch of the digits' 1,294 training images in batches of 64
EPOCHS = ("training.epochs=2", "scoring.cache_dir=null")


class Overflowing(nn.Module):
    """The third layer gives infinity where the sum of an input is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.inner = nn.ModuleDict({"exp": Exp()})
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner["exp"](self.norm(self.first(x)), x.sum(1)))


class Exp(nn.Module):
    def forward(self, x: Tensor, power: Tensor) -> Tensor:
        return x + (200 * power).exp().log()[:, None]


def network() -> Overflowing:
    torch.manual_seed(0)
    return Overflowing()


def test_the_source_is_the_first_layer_that_is_not_finite() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    assert source_of(model, -torch.ones(2, 3) / 100) == ""
    said = ": the first layer whose output is not finite is 'inner.exp'"
    assert source_of(model, torch.ones(2, 3)) == said
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.first._forward_hooks
    assert source_of(model, torch.tensor([[1.0, 2.0, torch.nan]])).startswith(": the inputs hold")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named_before_outputs(bad: float) -> None:
    model = network()
    with torch.no_grad():
        model.first.bias[1] = bad
    inputs = torch.ones(2, 3)
    said = ": 1 of 6 weight tensors hold NaN or infinity, 'first.bias'"
    assert source_of(model, inputs) == said
    with torch.no_grad():
        model.last.weight[0, 0] = bad
    said = ": 2 of 6 weight tensors hold NaN or infinity, 'first.bias' to 'last.weight'"
    assert source_of(model, inputs) == said


def test_an_output_that_no_layer_makes_is_said_to_be_the_networks() -> None:
    class Divided(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / torch.zeros(())

    assert source_of(Divided(2, 2), torch.ones(1, 2)) == ": the output of the network is not finite"
    whole = nn.Embedding(3, 2)
    assert source_of(whole, torch.tensor([0, 2])) == ""


@pytest.mark.parametrize("statistics", ["running", "population"])
def test_a_warmup_that_finds_no_number_names_layer_and_reason(statistics: Any) -> None:
    model = nn.Sequential(Exp2(), nn.BatchNorm1d(3), nn.Linear(3, 2))
    batches = [(torch.full((4, 3), 1.0), torch.zeros(4).long())]
    BatchNormWarmup(statistics)(model, batches)
    batches[0][0][2, 1] = 1e30
    expected = (
        r"1 of 3 statistics of '1\.running_mean' are NaN or infinite: the first layer whose "
        r"output is not finite is '0'"
    )
    with pytest.raises(RunError, match=expected):
        BatchNormWarmup(statistics)(model, batches)
    batches[0][0][2, 1] = torch.nan
    with pytest.raises(RunError, match="are NaN or infinite: the inputs hold NaN or infinity"):
        BatchNormWarmup(statistics)(model, batches)


class Exp2(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


@pytest.mark.parametrize("estimator", ["empirical_fisher", "mc_fisher", "exact_ggn", "hutchinson"])
def test_a_diagonal_that_is_no_number_names_weight_and_reason(estimator: Any) -> None:
    model = nn.Sequential(Exp2(), nn.Linear(3, 3), nn.Linear(3, 2))
    batches = [(torch.ones(2, 3), torch.zeros(2).long()) for _ in range(2)]
    pai.curvature_diagonal(model, batches, estimator)
    batches[1][0][1, 1] = 1e30
    expected = (
        r"^[39] of 9 numbers of '1\.weight' are NaN or infinite: the first layer whose output is "
        r"not finite is '0'$"
    )
    with pytest.raises(RunError, match=expected):
        pai.curvature_diagonal(model, batches, estimator)
    assert model.training


@dataclass(frozen=True)
class Diverging:
    """A learning rate that ruins the network in the second epoch, from its third step on."""

    def factor(self, epoch: float, epochs: int) -> float:
        return 1e30 if epoch > 1 + 2 / STEPS else 1.0


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_epochs_before(
    tmp_path: Path,
) -> None:
    good = plan(*EPOCHS)
    options = replace(good.training, lr_schedule=Constant())
    whole = tiny_run(tmp_path / "whole", *EPOCHS, training=options)
    bad = replace(options, lr_schedule=Diverging())
    said = r"training loss became (nan|inf) in epoch 2, step 4: .*(weight tensors|first layer)"
    for _ in range(2):  # started again it comes to the same end, from the same checkpoint
        with pytest.raises(RunError, match=said):
            tiny_run(tmp_path / "bad", *EPOCHS, training=bad)
        record = record_in(tmp_path / "bad")
        assert record["status"] == "failed"
        assert "epoch 2, step 4" in record["error"]
        assert record["mask"] == whole["mask"]
        assert len(record["history"]) == 1
        assert untimed(record["history"]) == untimed(whole["history"])[:1]
        stored = torch.load(tmp_path / "bad" / "checkpoint.pt", weights_only=True)
        assert stored["epoch"] == 1
        assert all(bool(value.isfinite().all()) for value in stored["model"].values())
        assert not (tmp_path / "bad" / "model.safetensors").exists()
    again = tiny_run(tmp_path / "bad", *EPOCHS, training=options)
    assert again["metrics"] == whole["metrics"]
    for name in ("mask.safetensors", "model.safetensors"):
        assert (tmp_path / "bad" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_weight_that_is_no_number_stops_scoring_and_is_named(tmp_path: Path) -> None:
    good = plan(*EPOCHS)

    def spoilt() -> nn.Module:
        model = good.build_model()
        with torch.no_grad():
            model.get_parameter("stages.1.0.conv1.weight").fill_(torch.nan)
        return model

    for overrides, said in (
        (("scorer=snip",), "running_mean' are NaN or infinite: 1 of"),
        (("scorer=snip", "warmup=none"), r"scores of 'conv1\.weight' .*\(FactorScorer\): 1 of"),
        (("scorer=magnitude", "warmup=none"), r"288 of 288 scores of 'stages\.1.*\): 1 of"),
        (("scorer=random", "warmup=none"), r"training loss became nan in epoch 1, step 1: 1 of"),
        (("scorer=random", "warmup=none", "training.epochs=0"), r"validation loss became nan in"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(RunError, match=said) as caught:
            tiny_run(folder, *EPOCHS, *overrides, build_model=spoilt)
        assert "hold NaN or infinity, 'stages.1.0.conv1.weight'" in str(caught.value)
        assert record_in(folder)["error"] == f"RunError: {caught.value}"
        assert record_in(folder)["metrics"] == {}


def test_what_is_no_number_is_not_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    good = plan(*EPOCHS[:1], "scorer=fts", f"scoring.cache_dir={cache}")

    def spoilt() -> nn.Module:
        model = good.build_model()
        with torch.no_grad():
            model.get_parameter("fc.bias")[0] = torch.inf
        return model

    with pytest.raises(RunError, match="are NaN or infinite"):
        tiny_run(tmp_path / "run", *good_overrides(cache), build_model=spoilt, warmup=NoWarmup())
    assert not list(cache.rglob("*.safetensors"))


def good_overrides(cache: Path) -> tuple[str, ...]:
    return ("scorer=fts", f"scoring.cache_dir={cache}", "training.epochs=0")


def test_a_diverged_run_says_so_in_a_line_and_what_was_computed_stays(tmp_path: Path) -> None:
    arguments = (*TINY, "training.optimizer.lr=1e30", "hydra.run.dir=run")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("run error: the training loss became ")
    assert "a lower training.optimizer.lr may help" in line
    assert "epoch 1, step 2: " in line
    record = record_in(tmp_path / "run")
    assert record["status"] == "failed"
    assert record["metrics"] == {}
    mask = load_file(tmp_path / "run" / "mask.safetensors")
    assert record["mask"]["kept"] == sum(int(keep.sum()) for keep in mask.values())
    other = command(*TINY, "hydra.run.dir=run", cwd=tmp_path)
    assert other.returncode == 2
    assert (
        "hydra.run.dir: run holds a run with training.optimizer.lr=1e+30, not 0.05" in other.stderr
    )
    assert record_in(tmp_path / "run") == record
