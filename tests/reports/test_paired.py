from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from sweep_records import record, write

from pai.errors import ConfigError
from pai.reports.collect import collect
from pai.reports.grid import Grid, Layout, build_grid
from pai.reports.options import assignments
from pai.reports.paired import contrasts, gain_table

ACCURACY = {
    ("snip", 0.9): (0.80, 0.82, 0.84), ("snip", 0.98): (0.60, 0.66, 0.63),
    ("hts", 0.9): (0.81, 0.85, 0.86), ("hts", 0.98): (0.70, 0.69, 0.71),
}  # fmt: skip


def measured(accuracy: float) -> dict[str, float]:
    return {"test_loss": 1 - accuracy, "test_perplexity": 2 - accuracy}


def grid(tmp_path: Path, *others: dict[str, Any], **layout: Any) -> Grid:
    runs = [
        record(scorer, sparsity, seed, accuracy, metrics=measured(accuracy))
        for (scorer, sparsity), found in ACCURACY.items()
        for seed, accuracy in enumerate(found)
    ]
    write(tmp_path, *runs, *others)
    return build_grid(collect(tmp_path), Layout(**({"rows": ("scorer", "warmup")} | layout)))


def test_gains_are_paired_by_seed_and_a_seed_counts_once_overall(tmp_path: Path) -> None:
    (found,) = contrasts(grid(tmp_path), {"scorer": "hts"}, {"scorer": "snip"})
    assert found.label == "hts, bn_stats over snip, bn_stats"
    for sparsity, gain in found.gains.items():
        own, its = ([100 * a for a in ACCURACY[scorer, sparsity[0]]] for scorer in ("hts", "snip"))
        expected = stats.ttest_rel(own, its).confidence_interval(0.95)
        assert gain.interval == pytest.approx((expected.low, expected.high))
    overall = [(1 + 10) / 2, (3 + 3) / 2, (2 + 8) / 2]
    expected = stats.ttest_1samp(overall, 0).confidence_interval(0.95)
    assert found.overall is not None and found.overall.pairs == 3
    assert found.overall.mean == pytest.approx(13.5 / 3)
    assert found.overall.interval == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("metric", ["test_loss", "test_perplexity"])
def test_of_losses_and_perplexities_the_lower_one_gains(tmp_path: Path, metric: str) -> None:
    made = grid(tmp_path, metric=metric)
    (found,) = contrasts(made, {"scorer": "hts"}, {"scorer": "snip"})
    assert found.gains[(0.9,)].mean == pytest.approx(0.02)
    cell = gain_table(made, [found]).splitlines()[2].split(" | ")[1]
    assert cell == "+0.020 [-0.005, +0.045] (n=3)"


def test_a_gain_that_is_rounded_to_nothing_has_no_minus(tmp_path: Path) -> None:
    other = record("random", 0.9, 0, ACCURACY["snip", 0.9][0] - 0.0001)
    made = grid(tmp_path, other)
    (found,) = contrasts(made, {"scorer": "random"}, {"scorer": "snip"})
    assert "| +0.0 (n=1) | – | +0.0 (n=1) |" in gain_table(made, [found])


def test_several_keys_and_missing_columns(tmp_path: Path) -> None:
    made = grid(tmp_path, record("random", 0.9, 0, 0.5, "none"))
    (found,) = contrasts(
        made, assignments("scorer=snip,warmup=bn_stats"), assignments("scorer=random,warmup=none")
    )
    assert set(found.gains) == {(0.9,)} and found.gains[(0.9,)].pairs == 1
    row = gain_table(made, [found]).splitlines()[2]
    assert row == "| snip, bn_stats over random, none | +30.0 (n=1) | – | +30.0 (n=1) |"


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("scorer=hts", "warmup=none", "scorer must be one of the rows .* on both sides"),
        ("seed=0", "seed=1", "seed must be one of the rows"),
        ("scorer=hts", "scorer=grasp", "no two rows differ"),
        ("hts", "scorer=snip", "'hts' is not KEY=VALUE"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, first: str, second: str, words: str) -> None:
    made = grid(tmp_path)
    with pytest.raises(ConfigError, match=words):
        contrasts(made, assignments(first), assignments(second))
