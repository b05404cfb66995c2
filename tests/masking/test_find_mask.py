"""What ``find_mask`` hands on, and the epochs and steps of pruning in rounds with training."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.masking.mask import mask_report
from pai.masking.rounds import TrainAndPrune
from pai.masking.schedule import Exponential

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 10), nn.Linear(10, 3))


def reversed_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(-outputs, targets)


def test_the_loss_reaches_the_scorer() -> None:
    network, snip = model(), pai.load_scorer("snip")
    found = pai.find_mask(network, [(X, Y)], snip, sparsity=0.7, loss_fn=reversed_loss)
    expected = pai.select(snip(network, [(X, Y)], loss_fn=reversed_loss), 0.7)
    plain = pai.select(snip(network, [(X, Y)]), 0.7)
    assert all(torch.equal(found[name], keep) for name, keep in expected.items())
    assert any(not torch.equal(found[name], keep) for name, keep in plain.items())


def test_the_generator_reaches_the_scorer() -> None:
    network, scorer = model(), pai.load_scorer("random")
    first, second, other = (
        pai.find_mask(network, [(X, Y)], scorer, sparsity=0.7,
                      generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )  # fmt: skip
    assert all(torch.equal(first[name], keep) for name, keep in second.items())
    assert any(not torch.equal(first[name], keep) for name, keep in other.items())


@pytest.mark.parametrize("find", [True, False])
def test_budgets_on_the_way_know_where_it_goes(find: bool) -> None:
    """uniform_plus leaves its last layer at least a fifth, of the final sparsity's budget too."""
    network, scorer = model(), pai.load_scorer("magnitude")

    def counts(towards: float | None) -> list[int]:
        mask = pai.find_mask(
            network, [(X, Y)], scorer, sparsity=0.5, scope="uniform_plus", towards=towards
        )
        if not find:
            mask = pai.select(scorer(network, [(X, Y)]), 0.5, scope="uniform_plus", towards=towards)
        return [int(keep.sum()) for keep in mask.values()]

    assert sum(counts(0.6)) == sum(counts(None)) == 140
    within = pai.find_mask(network, [(X, Y)], scorer, sparsity=0.5, scope="erk", towards=0.9)
    final = pai.find_mask(
        network, [(X, Y)], scorer, sparsity=0.9, scope="erk", within=within, towards=0.9
    )
    alone = pai.find_mask(network, [(X, Y)], scorer, sparsity=0.9, scope="erk")
    assert [int(k.sum()) for k in final.values()] == [int(k.sum()) for k in alone.values()]


def test_towards_reaches_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    choose: Callable[..., dict[str, Tensor]] = pai.select

    def noticed(*arguments: object, towards: float, **options: object) -> dict[str, Tensor]:
        seen.append(towards)
        return choose(*arguments, towards=towards, **options)

    monkeypatch.setattr("pai.masking.schedule.select", noticed)
    for towards, goal in ((0.9, 0.9), (None, 0.5)):
        seen.clear()
        pai.find_mask(
            model(), [(X, Y)], pai.load_scorer("magnitude"), sparsity=0.5,
            schedule=Exponential(3), towards=towards,
        )  # fmt: skip
        assert seen == [goal] * 3


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the model has no prunable weights"):
        pai.find_mask(nn.Linear(4, 3), [(X, Y)], pai.load_scorer("snip"), sparsity=0.5)


def test_a_schedule_that_resamples_says_what_it_needs() -> None:
    with pytest.raises(
        ValueError,
        match=r"^batches must be a function of the round, because the schedule resamples; "
        r"give one, or a schedule with resample=False$",
    ):
        pai.find_mask(
            model(), [(X, Y)], pai.load_scorer("snip"), sparsity=0.5,
            schedule=Exponential(3, resample=True),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("rounds", "number", "epochs", "steps"),
    [
        (TrainAndPrune(3, epochs=4), 0, 4, range(40)),
        (TrainAndPrune(3, epochs=4), 2, 4, range(40)),
        (TrainAndPrune(3, epochs=None), 1, 7, range(70)),
        (TrainAndPrune(3, epochs=4, later_epochs=2), 0, 4, range(40)),
        (TrainAndPrune(3, epochs=4, later_epochs=2), 1, 2, range(20)),
        (TrainAndPrune(3, epochs=4, later_epochs=2), 2, 2, range(20)),
        (TrainAndPrune(3, epochs=4, rewind_step=5), 0, 4, range(40)),
        (TrainAndPrune(3, epochs=4, rewind_step=5), 1, 4, range(5, 40)),
        (TrainAndPrune(3, epochs=4, rewind_step=0), 1, 4, range(40)),
        (TrainAndPrune(3, epochs=4, later_epochs=2, rewind_step=5), 1, 2, range(5, 20)),
        (TrainAndPrune(3, epochs=4, prune_step=12, rewind_step=5), 1, 4, range(5, 12)),
    ],
)
def test_epochs_and_steps_of_a_round(
    rounds: TrainAndPrune, number: int, epochs: int, steps: range
) -> None:
    assert rounds.epochs_of(number, 7) == epochs
    assert rounds.steps_of(number, 7, 10) == steps


def test_the_report_has_shapes_and_counts_of_all_parameters() -> None:
    network = model()
    mask = pai.find_mask(network, [(X, Y)], pai.load_scorer("magnitude"), sparsity=0.5)
    report = mask_report(network, mask, X)
    assert [row["shape"] for row in report["layers"]] == [[20, 4], [10, 20]]
    assert report["all_parameters"] == sum(p.numel() for p in network.parameters())
