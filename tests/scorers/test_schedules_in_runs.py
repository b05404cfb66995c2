"""What a run on the digits makes of a method's schedule."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny import config, plan, record_in, tiny_run

from pai.scoring import scoring_samples


def test_force_runs_with_its_own_schedule_and_says_so(tmp_path: Path) -> None:
    options = ["training.epochs=0", "scorer=force", "sparsity=0.95", "scoring.samples_per_class=1"]
    for place, more in {
        "a": ["schedule.rounds=3"],
        "again": ["schedule.rounds=3"],
        "same_samples": ["schedule.rounds=3", "schedule.resample=false"],
        "none_returns": ["schedule.rounds=3", "schedule.revive=false"],
        "once": ["schedule=oneshot"],
        "snip": ["schedule=oneshot", "scorer=snip"],
    }.items():
        tiny_run(tmp_path / place, *options, *more)
    masks = {place.name: load_file(place / "mask.safetensors") for place in tmp_path.iterdir()}

    def equal(one: str, other: str) -> bool:
        return all(torch.equal(keep, masks[other][name]) for name, keep in masks[one].items())

    assert equal("a", "again")
    assert equal("once", "snip")
    assert not equal("a", "same_samples")
    assert not equal("a", "none_returns")
    assert not equal("a", "once")
    record = record_in(tmp_path / "a")
    assert record["config"]["schedule"] == {
        "_target_": "pai.masking.schedule.Exponential",
        "rounds": 3, "revive": True, "resample": True,
    }  # fmt: skip
    assert record["mask"]["kept"] == round(0.05 * record["mask"]["prunable"])
    assert record["scoring"]["cached"] is False


def test_the_first_round_sees_the_samples_of_a_one_shot_run(tmp_path: Path) -> None:
    options = ["training.epochs=0", "scorer=snip", "scoring.samples_per_class=1"]
    tiny_run(tmp_path / "once", *options)
    tiny_run(
        tmp_path / "round", *options, "schedule=linear", "schedule.rounds=1",
        "schedule.resample=true",
    )  # fmt: skip
    first, second = (record_in(tmp_path / place)["mask"]["sha256"] for place in ("once", "round"))
    assert first == second


def test_each_round_draws_samples_of_its_own_from_the_seed() -> None:
    data, scoring = plan().dataset.load(), config()["scoring"]
    draw, other = scoring_samples(data, scoring, 0), scoring_samples(data, scoring, 1)
    orders = [tuple(draw(number).order.tolist()) for number in (0, 1, 2, 3)]
    orders += [tuple(other(number).order.tolist()) for number in (0, 1)]
    assert len(set(orders)) == 6
    assert tuple(draw(2).order.tolist()) == orders[2]
    expected = data.scoring_batches(scoring["samples_per_class"], scoring["batch_size"], 0)
    assert torch.equal(draw(0).order, expected.order)
