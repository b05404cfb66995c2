"""What ``--dry-run`` says, and that it leaves nothing."""

import re
from pathlib import Path

import pytest
from tiny import TINY, jobs, plan, tiny_run

from pai.cli import _command, register_resolvers
from pai.dry_run import _count, _duration, _flops, describe
from pai.estimate import Estimator
from pai.plan import prepare


def test_a_dry_run_lists_the_jobs_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*TINY, "scorer=snip,hts", "-m", "sparsity=0.5,0.9", "--dry-run",
                 "hydra.sweep.dir=sweep"]  # fmt: skip
    register_resolvers()
    assert _command(arguments) == 0
    text = capsys.readouterr().out
    assert text.count("missing") == 4
    assert "4 jobs: 0 done, 4 to run" in text
    assert "2 score computations" in text
    assert re.search(r"estimate: \S+ seconds .* just now on cpu; \S+ seconds of it for sel", text)
    assert len([line for line in text.splitlines() if "scorer=snip" in line]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(33.3, "33 seconds"), (119.0, "119 seconds"), (180.0, "3.0 minutes"),
     (36_000.0, "10 hours"), (864_000.0, "10 days")],
)  # fmt: skip
def test_a_time_is_told_in_a_unit_that_fits(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_overrides_that_the_directory_does_not_show_have_a_line(tmp_path: Path) -> None:
    found = jobs("-m", *TINY, "scoring.cache_dir=a/b", "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    text = describe(found, [prepare(job.config) for job in found])
    assert text.count("scoring.cache_dir=a_b") == text.count("scoring.cache_dir=a/b") == 2


def test_done_jobs_cost_nothing_and_tell_the_speed(tmp_path: Path) -> None:
    found = jobs("-m", *TINY, "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    tiny_run(found[0].run_dir)
    text = describe(found, [prepare(job.config) for job in found])
    assert "2 jobs: 1 done, 1 to run" in text
    assert "from 1 completed run of this sweep" in text


def test_flops_and_counts_are_words_that_read_well() -> None:
    assert [_flops(number) for number in (5e8, 999.4e9, 999.7e9, 2.4e16)] == [
        "500 MFLOP", "999 GFLOP", "1 TFLOP", "24 PFLOP",
    ]  # fmt: skip
    assert [_count(number, "job") for number in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]


def test_training_costs_three_forward_passes_per_image() -> None:
    cost = Estimator().cost(plan("training.epochs=7"))
    forward = Estimator().forward(plan())
    assert cost.train == 7 * 1295 * 3 * forward
    assert cost.score == 0


def test_training_before_the_mask_is_counted() -> None:
    def epochs(*overrides: str) -> float:
        tiny = plan("training.epochs=4", *overrides)
        return Estimator().cost(tiny).train / (1295 * 3 * Estimator().forward(tiny))

    assert epochs("baseline=magnitude_after_training") == 8
    assert epochs("baseline=lottery_ticket", "baseline.rounds=3") == 3 * 4 + 4
    steps = 21  # of 1295 images in batches of 64
    assert epochs("baseline=pretrain", f"baseline.prune_step={steps // 3}") == pytest.approx(
        4 + 1 / 3
    )
    late = ("baseline=lottery_ticket", "baseline.rounds=3", f"baseline.rewind_step={steps}")
    assert epochs(*late) == 4 + 2 * 3 + 3


def test_scoring_costs_what_the_scorer_does() -> None:
    estimator = Estimator()
    forward = estimator.forward(plan())

    def passes(*overrides: str) -> float:
        return estimator.cost(plan(*overrides)).score / forward / 20  # 2 samples of 10 classes

    assert passes("scorer=snip") == pytest.approx(3, rel=0.2)  # forward and backward
    few, many = (passes("scorer=hts", f"scorer.num_probes={n}") for n in (2, 4))
    assert many - few == pytest.approx(2 * 9, rel=0.5)  # a Hessian-vector product is about 9
    rounds = passes("scorer=snip", "schedule=exponential", "schedule.rounds=5")
    assert rounds == pytest.approx(5 * passes("scorer=snip"))


def test_rounds_of_selection_are_charged_by_the_weights_they_select_among() -> None:
    estimator = Estimator()

    def seconds(*overrides: str) -> float:
        return estimator.cost(plan("sparsity=0.75", *overrides)).select_s

    once = seconds()
    rounds = ("schedule=exponential", "schedule.rounds=2")
    assert once > 0
    assert seconds(*rounds) == pytest.approx(once * (1 + 0.5))  # half is left after the first
    assert seconds(*rounds, "schedule.revive=true") == pytest.approx(once * 2)
    assert seconds("sparsity_is=effective") > seconds("scorer=none") == 0


def test_scores_are_shared_as_the_cache_shares_them() -> None:
    estimator = Estimator()

    def shared(*overrides: str) -> tuple[str, ...]:
        return estimator.cost(plan(*overrides)).shared

    assert shared("scorer=gts") == shared("scorer=gp", "sparsity=0.5") != ()
    assert shared("scorer=gts") != shared("scorer=gts", "seed=1")
    assert shared("scorer=gts") != shared("scorer=mts")
    assert shared("scorer=gts", "scoring.cache_dir=null") == ()
    assert shared("scorer=gts", "schedule=exponential") == ()
