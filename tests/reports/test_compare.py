"""Comparing masks, in cases done by hand."""

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import CHECKOUT, tiny_run

from pai.masking.mask import save_mask
from pai.reports.compare import as_csv, compare, markdown

A = {"x": np.array([1, 1, 0, 0], bool), "y": np.array([[1, 0], [0, 0]], bool)}
B = {"x": np.array([1, 0, 0, 0], bool), "y": np.array([[1, 1], [1, 0]], bool)}


def test_a_pair_done_by_hand() -> None:
    (pair,) = compare({"a": A, "b": B})
    assert pair.iou == 2 / 5  # kept by both: x0, y00; by one: x1, y01, y10
    chance = 2 * 1 / 4 + 1 * 3 / 4
    assert pair.iou_by_chance == pytest.approx(chance / (7 - chance))
    assert pair.budget_distance == pytest.approx(abs(2 / 3 - 1 / 4))
    assert pair.layer_iou == {"x": 1 / 2, "y": 1 / 3}
    assert pair.rank_correlation is None


def test_the_same_mask_and_its_opposite() -> None:
    empty = {"x": np.zeros(4, bool), "y": np.ones((2, 2), bool)}
    same, other, _ = compare({"a": A, "b": A, "c": empty})
    assert (same.iou, same.budget_distance) == (1, 0)
    assert other.layer_iou == {"x": 0, "y": 1 / 4}
    full = {"x": np.ones(4, bool), "y": np.zeros((2, 2), bool)}
    (apart,) = compare({"a": empty, "b": full})
    assert (apart.iou, apart.budget_distance) == (0, 1)
    (pair,) = compare({"a": full, "b": full})
    assert pair.layer_iou["y"] is None


def test_independent_masks_overlap_as_by_chance() -> None:
    stream = np.random.default_rng(0)
    masks = {n: {"x": stream.random(20_000) < 0.1, "y": stream.random(20_000) < 0.5} for n in "ab"}
    (pair,) = compare(masks)
    assert pair.iou == pytest.approx(pair.iou_by_chance, abs=0.01)


def test_ranks_are_compared_over_all_layers() -> None:
    scores = {"x": np.array([1.0, 2, 3, 4]), "y": np.array([[5.0, 6], [7, 8]])}
    powers = {name: value**3 for name, value in scores.items()}
    (pair,) = compare({"a": A, "b": B}, {"a": scores, "b": powers})
    assert pair.rank_correlation == pytest.approx(1)
    shifted = {"x": scores["x"] + 10, "y": scores["y"]}  # the layers change places
    (pair,) = compare({"a": A, "b": B}, {"a": scores, "b": shifted})
    assert pair.rank_correlation is not None and pair.rank_correlation < 0
    (pair,) = compare({"a": A, "b": B}, {"a": scores})
    assert pair.rank_correlation is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": A["x"]}, "b has no 'y'"), ({**A, "z": A["x"]}, "a has no 'z'"),
        ({**A, "x": np.ones(3, bool)}, r"'x' has shapes \(4,\) and \(3,\)"),
        ({name: keep & False for name, keep in A.items()}, "b keeps no weight"),
    ],
)  # fmt: skip
def test_masks_of_different_networks_are_refused(
    other: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare({"a": A, "b": other})


def test_tables_have_every_pair_and_layer() -> None:
    masks = {"a": A, "b": B, "c|d": A}
    pairs = compare(masks)
    text = markdown(pairs, masks)
    assert "| a / b | 0.400 |" in text and "c\\|d" in text
    rows = list(csv.DictReader(as_csv(pairs).splitlines()))
    assert len(rows) == 3 * 3
    assert float(rows[0]["iou"]) == 0.4 and rows[1]["layer"] == "x"


def test_no_name_in_a_csv_file_is_a_formula() -> None:
    text = as_csv(compare({"+seeds.data=1": A, "@b": B}))
    row = next(csv.DictReader(text.splitlines()))
    assert (row["first"], row["second"]) == ("'+seeds.data=1", "'@b")


@pytest.mark.slow
def test_the_script_compares_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def script(*arguments: str) -> None:
        path = str(CHECKOUT / "scripts" / "compare_masks.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(path, run_name="__main__")

    for name, scorer in (("one", "magnitude"), ("two", "random")):
        options = ("training.epochs=0", "scoring.save_scores=true", f"scorer={scorer}")
        tiny_run(tmp_path / name, *options)
    scores = load_file(tmp_path / "one" / "scores.safetensors")
    mask = load_file(tmp_path / "one" / "mask.safetensors")
    least = min(float(scores[name][keep].min()) for name, keep in mask.items() if keep.any())
    most = max(float(scores[name][~keep].max()) for name, keep in mask.items() if not keep.all())
    assert least >= most

    def told(*runs: str) -> str:
        with pytest.raises(SystemExit) as failed:
            script(*runs)
        return str(failed.value)

    script(str(tmp_path / "one"), str(tmp_path / "two" / "mask.safetensors"), "--out", str(out))
    assert {path.name for path in out.iterdir()} == {"masks.md", "masks.csv", "masks.png"}
    save_mask({"x": torch.ones(2, dtype=torch.bool)}, tmp_path / "other.safetensors")
    assert "different networks" in told(str(tmp_path / "one"), str(tmp_path / "other.safetensors"))
    assert "compare error: " in told(str(tmp_path / "one"), str(tmp_path / "absent"))


def test_masks_are_named_by_what_differs() -> None:
    differing = runpy.run_path(str(CHECKOUT / "scripts" / "compare_masks.py"))["differing"]
    names = ["model=gcn,scorer=snip,seed=0", "model=gcn,scorer=hts,seed=0", "mask"]
    assert differing(names[:2]) == ["scorer=snip", "scorer=hts"]
    assert differing(names) == names
    assert differing(["a=1,b=2", "a=1"]) == ["b=2", "a=1"]
    assert differing(["a=1", "a=1"]) == ["a=1", "a=1"]
