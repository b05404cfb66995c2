"""The summary of one run, from hand-made records."""

from pathlib import Path
from typing import Any

import pytest

from pai.reports.summary import one_line, summarise

FOLDER = Path("runs") / "here"


def layer(name: str, total: int, kept: int) -> dict[str, Any]:
    return {
        "name": name, "shape": [total], "total": total, "kept": kept, "density": kept / total,
        "effective_kept": kept,
    }  # fmt: skip


def record(**changes: Any) -> dict[str, Any]:
    """Return the record of a completed run; ``mask_...`` and ``metrics_...`` change inner keys."""
    layers = [layer("conv1.weight", 200, 100), layer("stage.conv.weight", 12_000, 1_020)]
    whole: dict[str, Any] = {
        "status": "completed", "error": None, "name": "scorer=snip,seed=0", "seed": 0,
        "config": {"sparsity": 0.9, "sparsity_is": "direct", "training": {"epochs": 3}},
        "mask": {
            "sparsity": 0.9082, "sparsity_all_parameters": 0.9, "kept": 1_120, "prunable": 12_200,
            "all_parameters": 12_345, "effective_sparsity": 0.9111, "collapsed_layers": [],
            "effective_undefined": None, "dead_layers": [], "cut_at": None,
            "sha256": "0" * 64, "layers": layers,
        },
        "cost": {
            "forward_flops_dense": 1_112_000_000, "forward_flops_masked": 123_456_789,
            "parameters_dense": 12_345, "parameters_kept": 1_265,
        },
        "metrics": {
            "test_accuracy": 0.81234, "test_loss": 0.5, "val_accuracy": 0.79, "val_loss": 0.6,
            "best_val_accuracy": 0.8, "best_val_epoch": 2, "best_val_test_accuracy": 0.8,
            "best_val_test_loss": 0.5,
        },
        "history": [],
        "timing_s": {
            "data": 0.1, "warmup": 0.26, "score": 1.5, "mask": 0.0, "train": 12.34, "total": 14.5,
        },
    }  # fmt: skip
    for key, value in changes.items():
        group, _, inner = key.partition("_")
        if key in whole or not inner:
            whole[key] = value
        else:
            whole[group][inner] = value
    return whole


def line(text: str, start: str) -> str:
    (found,) = [row for row in text.splitlines() if row.startswith(start)]
    return found


def test_the_summary_gives_exact_counts_and_what_was_asked() -> None:
    found = line(summarise(record(), FOLDER), "weights")
    for words in ("1,120 of 12,200", "sparsity 0.9082", "asked 0.9", "12,345 parameters in all"):
        assert words in found


def test_the_cost_is_in_million_operations() -> None:
    found = line(summarise(record(), FOLDER), "cost")
    assert "123.46 of 1,112.00 MFLOPs" in found


def test_operations_without_a_formula_are_told() -> None:
    text = summarise(record(cost=record()["cost"] | {"uncounted": ["a.weight"]}), FOLDER)
    assert "no formula for what is done with a.weight" in line(text, "WARNING")


def test_accuracies_are_percentages_of_the_last_and_the_best_epoch() -> None:
    found = line(summarise(record(), FOLDER), "accuracy")
    for words in ("test 81.23%", "80.00% at the best validation epoch (2)", "validation 79.00%"):
        assert words in found


def test_the_accuracy_of_a_network_that_was_not_trained_says_so() -> None:
    found = line(summarise(record(metrics_best_val_epoch=0), FOLDER), "accuracy")
    assert "test 81.23% without training of what is left; validation" in found


def test_training_before_the_mask_is_told_in_steps_and_epochs() -> None:
    spent = {"steps": 1059, "epochs": 59 / 21, "training_flops_dense": 2e9, "rounds": [{}, {}]}
    found = line(summarise(record(baseline=spent), FOLDER), "before")
    assert "1,059 steps (2.81 epochs) of training in 2 rounds (2.00 GFLOPs)" in found
    assert "before" not in summarise(record(), FOLDER)


def test_seconds_are_in_all_and_by_part() -> None:
    found = line(summarise(record(), FOLDER), "seconds")
    for words in ("14.5 in all", "data 0.1", "warmup 0.3", "score 1.5", "mask 0.0", "train 12.3"):
        assert words in found


def test_the_place_of_the_files_is_the_last_line() -> None:
    assert summarise(record(), FOLDER).splitlines()[-1].split() == ["files", str(FOLDER)]


def test_a_resumed_run_may_lack_times() -> None:
    found = line(summarise(record(timing_s={"train": 1.0, "total": 2.0}), FOLDER), "seconds")
    assert "2.0 in all: train 1.0" in found


def test_every_layer_has_a_line_with_its_density() -> None:
    rows = summarise(record(), FOLDER).splitlines()
    assert rows[1].split()[:4] == ["conv1.weight", "100", "200", "50.00%"]
    assert rows[2].split()[:4] == ["stage.conv.weight", "1,020", "12,000", "8.50%"]
    assert rows[1].count("#") == 10
    assert rows[2].count("#") == 2
    assert rows[1].index("100") + 3 == rows[2].index("1,020") + 5  # numbers end in one column


def test_a_collapsed_layer_is_shown_twice() -> None:
    layers = [layer("conv1.weight", 200, 0), layer("stage.conv.weight", 12_000, 5)]
    text = summarise(record(mask_layers=layers, mask_collapsed_layers=["conv1.weight"]), FOLDER)
    assert "COLLAPSED" in line(text, "conv1.weight")
    assert "COLLAPSED" not in line(text, "stage.conv.weight")
    assert "conv1.weight" in line(text, "WARNING")
    assert "LAYER COLLAPSE" in line(text, "WARNING")


def test_without_collapse_there_is_no_warning() -> None:
    assert "WARNING" not in summarise(record(), FOLDER)


def test_effective_sparsity_or_why_it_is_not_defined() -> None:
    assert "sparsity 0.9111" in line(summarise(record(), FOLDER), "effective")
    without = record(mask_effective_sparsity=None, mask_effective_undefined="sort has no rule")
    assert "not defined: sort has no rule" in line(summarise(without, FOLDER), "effective")


def test_a_cut_network_is_announced() -> None:
    text = summarise(record(mask_cut_at="b.weight", mask_dead_layers=["a.weight"]), FOLDER)
    assert "no signal from the input passes b.weight" in text
    assert "DEAD LAYERS" not in text  # they all are
    assert "DEAD LAYERS: a.weight kept weights" in summarise(
        record(mask_dead_layers=["a.weight"]), FOLDER
    )


def test_an_effective_target_is_told() -> None:
    aimed = record(config={"sparsity": 0.9, "sparsity_is": "effective", "training": {"epochs": 3}})
    assert "asked effective 0.9" in line(summarise(aimed, FOLDER), "weights")


@pytest.mark.parametrize("kept", [0, 1, 200])
def test_densities_from_nothing_to_everything_fit(kept: int) -> None:
    text = summarise(record(mask_layers=[layer("conv1.weight", 200, kept)]), FOLDER)
    assert f"{kept / 2:.2f}%" in line(text, "conv1.weight")
    assert line(text, "conv1.weight").count("#") == round(kept / 10)


def test_no_sparsity_is_rounded_up_to_all_and_no_density_down_to_none() -> None:
    few = record(mask_layers=[layer("conv1.weight", 1_000_000, 23)], mask_sparsity=0.99997,
                 mask_effective_sparsity=0.99998)  # fmt: skip
    text = summarise(few, FOLDER)
    assert "sparsity 0.99997, asked" in line(text, "weights")
    assert "sparsity 0.99998:" in line(text, "effective")
    assert " 0.002% " in line(text, "conv1.weight")
    assert "sparsity 0.99997," in one_line(few, FOLDER)
    almost = record(mask_layers=[layer("conv1.weight", 1_000_000, 999_999)])
    assert "99.9999%" in line(summarise(almost, FOLDER), "conv1.weight")


def test_a_job_of_a_sweep_has_one_line() -> None:
    text = one_line(record(), FOLDER)
    assert text == f"scorer=snip,seed=0: test 81.23%, sparsity 0.9082, 14.5 s, {FOLDER}"
