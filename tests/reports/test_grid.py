"""What belongs into a cell, and what is kept out of it by name."""

from pathlib import Path
from typing import Any

import pytest
from sweep_records import grid, record

from pai.errors import ConfigError
from pai.reports.collect import collect
from pai.reports.grid import Grid, Layout, build_grid


def values(made: Grid) -> dict[tuple[str, Any], dict[int, float]]:
    """Return label of the row, only value of the column: values by seed."""
    labels = {row.key: row.label for row in made.rows}
    return {(labels[row], *column): cell.values for (row, column), cell in made.cells.items()}


def reasons(made: Grid) -> dict[str, str]:
    return {out.folder.name: out.reason for out in made.left_out}


def test_cells_hold_the_values_of_their_seeds(tmp_path: Path) -> None:
    made = grid(
        tmp_path,
        record("snip", 0.9, 0, 0.25), record("snip", 0.9, 1, 0.75), record("snip", 0.98, 0, 0.125),
        record("hts", 0.9, 1, 0.5), record("hts", 0.9, 7, 0.625),
    )  # fmt: skip
    assert values(made) == {
        ("snip", 0.9): {0: 0.25, 1: 0.75}, ("snip", 0.98): {0: 0.125},
        ("hts", 0.9): {1: 0.5, 7: 0.625},
    }  # fmt: skip
    cell = made.cells[("snip",), (0.9,)]
    assert cell.mean == 0.5
    assert cell.spread == pytest.approx((2 * 0.25**2) ** 0.5)
    assert made.cells[("snip",), (0.98,)].spread is None
    assert [(m.row, m.column, m.seeds) for m in made.missing] == [
        ("hts", "sparsity 0.9", (0,)), ("hts", "sparsity 0.98", (0, 1, 7)),
        ("snip", "sparsity 0.9", (7,)), ("snip", "sparsity 0.98", (1, 7)),
    ]  # fmt: skip
    assert made.left_out == ()


def test_the_dense_reference_stands_for_every_sparsity_and_does_not_compete(tmp_path: Path) -> None:
    made = grid(
        tmp_path,
        *(record("none", 0.0, seed, 0.99) for seed in (0, 1)),
        *(record("snip", s, seed, 0.5 + seed / 10) for s in (0.9, 0.98) for seed in (0, 1)),
        *(record("hts", s, seed, 0.6 + seed / 10) for s in (0.9, 0.98) for seed in (0, 1)),
    )
    assert [column for (column,) in made.columns] == [0.9, 0.98]
    assert [(row.label, row.reference) for row in made.rows] == [
        ("none", True), ("hts", False), ("snip", False),
    ]  # fmt: skip
    assert made.cells[("none",), (0.9,)].values == made.cells[("none",), (0.98,)].values
    assert made.bold == {(("hts",), (0.9,)), (("hts",), (0.98,))}
    assert made.missing == ()


def test_dense_runs_alone_make_a_table(tmp_path: Path) -> None:
    made = grid(tmp_path, record("none", 0.0, 0, 0.99))
    assert values(made) == {("none", 0.0): {0: 0.99}}


def test_runs_without_a_result_are_kept_out_by_name_and_their_cells_are_missing(
    tmp_path: Path,
) -> None:
    made = grid(
        tmp_path,
        record("snip", 0.9, 0, 0.5),
        record("snip", 0.9, 1, 0.1, status="failed", error="RunError: the loss\n is nan"),
        record("snip", 0.98, 0, 0.1, status="running"),
        record("hts", 0.9, 0, None),
    )
    assert values(made) == {("snip", 0.9): {0: 0.5}}
    assert reasons(made) == {
        "run1": "failed: RunError: the loss is nan",
        "run2": "running (or killed) since 2026-11-23T12:00:00+00:00",
        "run3": "test_accuracy is not a finite number",
    }
    assert ("snip", "sparsity 0.9", (1,)) in [(m.row, m.column, m.seeds) for m in made.missing]
    assert ("hts", "sparsity 0.98", (0, 1)) in [(m.row, m.column, m.seeds) for m in made.missing]


def test_of_equal_copies_one_counts_and_the_others_are_told(tmp_path: Path) -> None:
    twice = record("snip", 0.9, 0, 0.5)
    made = grid(tmp_path, twice, twice, record("snip", 0.9, 1, 0.7))
    assert values(made) == {("snip", 0.9): {0: 0.5, 1: 0.7}}
    assert list(reasons(made)) == ["run1"]
    assert reasons(made)["run1"].startswith("duplicate of")
    assert reasons(made)["run1"].endswith("run0, same result")


@pytest.mark.parametrize("change", [{"metrics": {"test_accuracy": 0.6}}, {"mask": {"sha256": "x"}}])
def test_of_copies_that_disagree_none_counts(tmp_path: Path, change: dict[str, Any]) -> None:
    made = grid(
        tmp_path, record("snip", 0.9, 0, 0.5), record("snip", 0.9, 0, 0.5, **change),
        record("snip", 0.9, 1, 0.7),
    )  # fmt: skip
    assert values(made) == {("snip", 0.9): {1: 0.7}}
    assert set(reasons(made)) == {"run0", "run1"}
    assert "another result" in reasons(made)["run0"]


def test_dense_runs_at_several_sparsities_are_copies(tmp_path: Path) -> None:
    copies = [record("none", s, 0, 0.9, mask={"sha256": "all"}) for s in (0.9, 0.98)]
    made = grid(tmp_path, *copies, record("snip", 0.9, 0, 0.5), record("snip", 0.98, 0, 0.5))
    assert values(made)["none", 0.98] == {0: 0.9}
    assert list(reasons(made)) == ["run1"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"training": {"epochs": 9}}, "training.epochs"),
        ({"training": {"optimizer": {"lr": 0.1}}}, "training.optimizer.lr"),
        ({"dataset": {"extra": 1}}, "dataset.extra"),
        ({"scope": "layer"}, "scope"),
        ({"scorer": {"num_probes": 3}}, "scorer.num_probes"),
        ({"schedule": {"_target_": "pai.masking.schedule.Linear"}}, "schedule._target_"),
    ],
)
def test_a_changed_configuration_is_refused_by_key_value_and_run(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    runs = [record("hts", 0.9, seed) for seed in (0, 1)]
    with pytest.raises(ConfigError) as raised:
        grid(tmp_path, *runs, record("hts", 0.9, 2, config=change))
    assert key in str(raised.value)
    assert "run2" in str(raised.value)
    assert f"--where {key}=" in str(raised.value)
    assert grid(tmp_path, ignore=(key,)).seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("key", "old", "new"), [("train", 864, 954), ("sha256", "ab", "cd"), ("text_sha256", "a", "b")]
)
def test_other_data_under_the_same_configuration_are_refused(
    tmp_path: Path, key: str, old: Any, new: Any
) -> None:
    runs = [record("hts", 0.9, seed, data={key: old, "scoring": seed}) for seed in (0, 1)]
    with pytest.raises(ConfigError, match=rf"^data\.{key}: .*run2.*--ignore data$"):
        grid(tmp_path, *runs, record("hts", 0.9, 2, data={key: new}))
    assert grid(tmp_path, ignore=("data",)).seeds == (0, 1, 2)


def test_what_does_not_change_the_experiment_may_differ(tmp_path: Path) -> None:
    made = grid(
        tmp_path, record("hts", 0.9, 0),
        record("hts", 0.9, 1, config={"device": "cuda:1", "logger": {"_target_": "another"}}),
    )  # fmt: skip
    assert made.left_out == ()
    assert made.notes == ()


def test_a_scorer_may_bring_its_schedule_which_is_noted(tmp_path: Path) -> None:
    made = grid(tmp_path, record("hts"), record("snip"), record("synflow"))
    assert made.notes == ("schedule: synflow (exponential); all others oneshot",)
    other = record("synflow", seed=1, config={"schedule": {"rounds": 10}})
    with pytest.raises(ConfigError, match=r"scorer=synflow: schedule.rounds"):
        grid(tmp_path, other)


def test_rows_and_columns_can_be_any_group_or_key(tmp_path: Path) -> None:
    runs = [
        record("hts", 0.9, 0, n / 100, warmup=warmup, config={"scorer": {"num_probes": n}})
        for n in (1, 10) for warmup in ("none", "bn_stats")
    ]  # fmt: skip
    made = grid(tmp_path, *runs, rows=("scorer", "warmup"), columns=("scorer.num_probes",))
    assert values(made) == {
        ("hts", 1): {0: 0.01}, ("hts", 10): {0: 0.1},
        ("hts, bn_stats", 1): {0: 0.01}, ("hts, bn_stats", 10): {0: 0.1},
    }  # fmt: skip
    assert made.column_label((10,)) == "num_probes 10"
    with pytest.raises(ConfigError, match=r"warmup"):
        grid(tmp_path, rows=("scorer",), columns=("scorer.num_probes",))
    assert len(grid(tmp_path, columns=("scorer.num_probes",), where={"warmup": "none"}).cells) == 2


def test_options_within_a_choice_are_no_part_of_its_name(tmp_path: Path) -> None:
    runs = [record("hts", 0.9, s, config={"warmup": {"batches": s}}, warmup="few") for s in (0, 1)]
    with pytest.raises(ConfigError, match=r"warmup=few: warmup.batches"):
        grid(tmp_path, *runs, rows=("scorer", "warmup"))


def test_a_baseline_is_a_reference_row_of_its_own(tmp_path: Path) -> None:
    after: dict[str, Any] = {
        "choices": {"baseline": "magnitude_after_training"},
        "config": {"baseline": {"_target_": "pai.baselines.Something", "epochs": 3}},
    }
    made = grid(
        tmp_path,
        *(record("magnitude", 0.9, seed, 0.7, **after) for seed in (0, 1)),
        *(record("magnitude", 0.9, seed, 0.5) for seed in (0, 1)),
        *(record("snip", 0.9, seed, 0.4) for seed in (0, 1)),
    )
    assert [(row.label, row.reference) for row in made.rows] == [
        ("magnitude_after_training", True), ("magnitude", False), ("snip", False),
    ]  # fmt: skip
    assert made.bold == {(("magnitude", "none"), (0.9,))}


def test_the_row_of_a_baseline_names_its_scorer_once(tmp_path: Path) -> None:
    after: dict[str, Any] = {
        "choices": {"baseline": "pretrain"},
        "config": {"baseline": {"_target_": "pai.baselines.Something", "epochs": 3}},
    }
    runs = [record(scorer, 0.9, 0, **after) for scorer in ("magnitude", "snip")]
    made = grid(tmp_path, *runs, record("magnitude", 0.9, 0))
    assert {row.label for row in made.rows} == {
        "pretrain, magnitude", "pretrain, snip", "magnitude",
    }  # fmt: skip


def test_rows_are_ordered_by_the_columns_they_share(tmp_path: Path) -> None:
    made = grid(
        tmp_path,
        record("random", 0.5, 0, 0.99), record("random", 0.9, 0, 0.2),  # alone in an easy column
        record("hts", 0.9, 0, 0.4), record("snip", 0.9, 0, 0.3),
    )  # fmt: skip
    assert [row.label for row in made.rows] == ["hts", "snip", "random"]


def test_of_losses_the_lowest_is_best(tmp_path: Path) -> None:
    losses = {"snip": 0.5, "hts": 0.7}
    made = grid(
        tmp_path,
        *(
            record(s, 0.9, seed, metrics={"test_loss": losses[s]})
            for s in losses
            for seed in (0, 1)
        ),
        metric="test_loss",
    )
    assert made.bold == {(("snip",), (0.9,))}
    assert [row.label for row in made.rows] == ["snip", "hts"]


@pytest.mark.parametrize("metric", ["test_perplexity", "best_val_test_perplexity"])
def test_of_perplexities_the_lowest_is_best(tmp_path: Path, metric: str) -> None:
    made = grid(
        tmp_path,
        *(
            record(scorer, 0.9, seed, 0.9 - value / 100, metrics={metric: value + seed / 100})
            for scorer, value in {"snip": 9.0, "hts": 12.0, "random": 30.0}.items()
            for seed in (0, 1, 2)
        ),
        metric=metric,
    )
    assert made.bold == {(("snip",), (0.9,))}
    assert [row.label for row in made.rows] == ["snip", "hts", "random"]


def test_a_metric_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    runs = [record("snip", 0.9, seed, metrics={"best_val_epoch": 2}) for seed in (0, 1)]
    with pytest.raises(ConfigError, match="metric: 'best_val_epoch' is of no kind"):
        grid(tmp_path, *runs, metric="best_val_epoch")


def test_a_run_that_lost_no_weight_is_in_its_own_cell_only(tmp_path: Path) -> None:
    nothing = {"sparsity": 0.0, "kept": 1000, "sha256": "all"}
    made = grid(
        tmp_path, record("snip", 1e-6, 0, 0.9, mask=nothing), record("snip", 0.9, 0, 0.5),
        record("snip", 0.98, 0, 0.3),
    )  # fmt: skip
    assert values(made) == {("snip", 1e-6): {0: 0.9}, ("snip", 0.9): {0: 0.5},
                            ("snip", 0.98): {0: 0.3}}  # fmt: skip
    assert made.left_out == ()


def test_a_reference_and_a_pruned_run_of_one_cell_and_seed_are_copies_that_disagree(
    tmp_path: Path,
) -> None:
    runs = [record("none", 0.0, 0, 0.99), record("snip", 0.9, 0, 0.5), record("snip", 0.9, 1, 0.6),
            record("snip", 0.98, 1, 0.4)]  # fmt: skip
    made = grid(tmp_path, *runs, rows=("warmup",), ignore=("scorer",))
    assert values(made)["bn_stats", 0.9] == {1: 0.6}
    assert set(reasons(made)) == {"run0", "run1"}


def test_a_row_that_cannot_be_compared_leaves_the_bold_to_the_others(tmp_path: Path) -> None:
    made = grid(
        tmp_path, record("lucky", 0.9, 0, 0.95),
        *(record("hts", 0.9, s, 0.8 + s / 100) for s in (0, 1, 2)),
        *(record("snip", 0.9, s, 0.7 + s / 100) for s in (0, 1, 2)),
    )  # fmt: skip
    assert made.bold == {(("hts",), (0.9,))}
    assert made.standings[0.9,].unknown == {("lucky",)}


def test_an_effective_sparsity_is_called_so(tmp_path: Path) -> None:
    effective: dict[str, Any] = {"config": {"sparsity_is": "effective"}}
    made = grid(tmp_path, record("snip", 0.9, 0, **effective), record("snip", 0.98, 0, **effective))
    assert [made.column_label(column) for column in made.columns] == [
        "effective sparsity 0.9", "effective sparsity 0.98",
    ]  # fmt: skip


@pytest.mark.parametrize("where", [{"warmup": "nope"}, {"sparsity": 0.77}])
def test_a_choice_that_no_run_has_is_refused(tmp_path: Path, where: dict[str, Any]) -> None:
    ((key, value),) = where.items()
    there = {"warmup": "bn_stats", "sparsity": "0.0, 0.9"}[key]
    with pytest.raises(ConfigError, match=f"has {key}={value}; in the runs {key} is {there}"):
        grid(tmp_path, record("none", 0.0), record("snip", 0.9), where=where)


def test_revisions_and_machines_that_differ_are_noted(tmp_path: Path) -> None:
    other = {"git_sha": "def", "packages": {"torch": "2.16.0"}, "device_name": "another",
             "git_dirty": True, "threads": 2, "processes": 4}  # fmt: skip
    usual = {"threads": 1, "processes": 1}
    made = grid(
        tmp_path, record(seed=0, environment=usual), record(seed=1, environment=usual),
        record(seed=2, environment=other),
    )  # fmt: skip
    assert made.notes == (
        "2 revisions of pai: abc (2 runs), def (1 run)",
        "2 values of uncommitted changes: False (2 runs), True (1 run)",
        "2 versions of torch: 2.15.0 (2 runs), 2.16.0 (1 run)",
        "2 devices: a processor (2 runs), another (1 run)",
        "2 numbers of threads: 1 (2 runs), 2 (1 run)",
        "2 numbers of processes: 1 (2 runs), 4 (1 run)",
    )


def test_revisions_of_the_earlier_parts_of_a_run_are_noted(tmp_path: Path) -> None:
    earlier = [{"git_sha": "def", "packages": {"torch": "2.15.0"}, "device_name": "a processor"}]
    made = grid(tmp_path, record(seed=0), record(seed=1, earlier_environments=earlier))
    assert made.notes == (
        "2 revisions of pai: abc (2 runs), def (1 run); of 1 run the parts differ",
    )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"rows": ("scorr",)}, r"scorr: no run has this group or key; did you mean 'scorer'"),
        ({"metric": "test_acuracy"}, r"metric: no run has 'test_acuracy'; did you mean"),
        ({"rows": ("sparsity",)}, r"'sparsity' is there twice"),
        ({"columns": ("seed",)}, r"'seed' is averaged over"),
        ({"columns": ()}, r"each needs at least one key"),
    ],
)
def test_a_layout_that_makes_no_sense_is_told(
    tmp_path: Path, layout: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(tmp_path, record(), **layout)


def test_no_records_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no records found"):
        build_grid(collect(tmp_path), Layout())
