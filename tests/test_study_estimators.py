"""The study of curvature estimators: its plan, its samples, its tables, and the whole on digits."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHECKOUT, python

SCRIPTS = CHECKOUT / "scripts"
SMALL = (
    "--seeds", "0", "--samples-per-class", "2", "--sizes", "1", "2", "--reference-per-class", "3",
    "--warmup-batches", "1", "--temperatures", "1", "--draws", "1", "--probes", "1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _scripts_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def study(**changes: Any) -> Any:
    from estimator_study.plan import Study

    return Study(**{
        "dataset_root": None, "model": "resnet20", "samples_per_class": 2, "sizes": (1, 2, 4),
        "reference_per_class": 5, "warmup_batches": 1, "temperatures": (1.0, 200.0),
        "draws": (1, 2), "probes": (3, 30), **changes,
    })  # fmt: skip


def test_every_measurement_has_a_file_of_its_own() -> None:
    from estimator_study.plan import cell_file, cells

    wanted = [cell for seed in (0, 1) for cell in cells(study(), seed)]
    files = {cell_file(Path(), setting, method) for _, setting, method in wanted}
    assert len(files) == len(wanted)


def test_each_part_varies_its_own_respect_and_no_other() -> None:
    from estimator_study.plan import base_setting, cells

    base = base_setting(study(), 0)
    for part, setting, _ in cells(study(), 0):
        alike = {
            "samples": setting.per_class == base.per_class,
            "conditions": (setting.warmup, setting.temperature) == (base.warmup, base.temperature),
        }
        assert {name for name, same in alike.items() if not same} == {part} - {"base"}


def test_sample_sets_are_nested_and_share_nothing_with_the_many() -> None:
    from estimator_study.measure import other_samples, samples

    def rows(batches: Any) -> set[bytes]:
        return {image.numpy().tobytes() for images, _ in batches for image in images}

    small, large = rows(samples(study(), 0, 1)), rows(samples(study(), 0, 4))
    many = rows(other_samples(study(), 0))
    assert (len(small), len(large), len(many)) == (10, 40, 50)
    assert small < large
    assert large.isdisjoint(many)


def test_an_estimate_agrees_with_itself_and_its_masks_follow_the_saliency() -> None:
    from estimator_study.measure import agreement

    weights, true = {"layer": torch.full((100,), 0.1)}, {"layer": torch.linspace(1, 2, 100)}
    weights["layer"][45:55] = 10.0  # these have the highest w^2 h whatever h in 1..2
    same = agreement(weights, true, true)
    assert same["relative_error"] == 0
    assert same["rank_correlation"] == pytest.approx(1)
    assert set(same["iou"]["h"].values()) == set(same["iou"]["w2h"].values()) == {1.0}
    reversed_ = agreement(weights, {"layer": true["layer"].flip(0)}, true)
    assert reversed_["rank_correlation"] == pytest.approx(-1)
    assert reversed_["iou"]["h"]["0.9"] == 0.0
    assert reversed_["iou"]["w2h"]["0.9"] == 1.0


def cell(estimator: str, seed: int, passes: float, error: float, **options: int | str) -> Any:
    return {
        "part": "base", "seed": seed, "estimator": estimator, "options": options,
        "gradient_passes": passes, "same_samples": {"relative_error": error},
    }  # fmt: skip


def test_the_time_to_reach_an_error_is_of_median_times_and_mean_errors() -> None:
    from estimator_study.report import reach_table

    found = [
        cell("mc_fisher", 0, 2.0, 0.30, num_draws=1), cell("mc_fisher", 1, 3.0, 0.40, num_draws=1),
        cell("mc_fisher", 0, 4.0, 0.05, num_draws=4), cell("mc_fisher", 1, 6.0, 0.11, num_draws=4),
        cell("hutchinson", 0, 9.0, 7.0, num_probes=2, matrix="hessian"),
        cell("hutchinson", 0, 8.0, 6.0, num_probes=2, matrix="hessian", batch_size=1),
    ]  # fmt: skip
    none = "not reached | not reached | not reached | not reached"
    assert reach_table(found).splitlines()[2:] == [
        "| Monte-Carlo Fisher | 2.5 G (1 draw) | 5.0 G (4 draws) | 5.0 G (4 draws) "
        "| not reached | 0.08 at 5.0 G |",
        f"| Hutchinson, Hessian | {none} | 7 at 9.0 G |",
        f"| Hutchinson, Hessian, batch size 1 | {none} | 6 at 8.0 G |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0456, "0.046"), (5.44, "5.4"), (12.3, "12"), (126.0, "130"), (27_123, "27,000"),
     (3.4e-7, "3.4e-07")],
)  # fmt: skip
def test_numbers_have_two_significant_digits(value: float, text: str) -> None:
    from estimator_study.report import short

    assert short(value) == text


def refused(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str | int | None:
    """Call the script in this process and return with what it exits."""
    from study_estimators import main

    monkeypatch.setattr("sys.argv", ["study_estimators.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset-root", "nowhere"], "study error: dataset.root: nowhere is not a folder"),
        (["--sizes", "100", "--reference-per-class", "100"], "study error: sizes and reference"),
        (["--model", "gpt"], "study error: model: gpt is not for images"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", sys)  # as if it were there
    told = str(refused(monkeypatch, *arguments))
    assert told.startswith(message)
    assert "\n" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_asks_for_the_image_size_gets_it() -> None:
    from estimator_study.measure import builder
    from estimator_study.plan import Study

    study = Study(None, "vit_cifar", 1, (1,), 1, 1, (1.0,), (1,), (1,))
    assert builder(study)().eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_numbers_out_of_range_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(monkeypatch, "--probes", "0") == 2
    assert "argument --probes: 0 is not at least 1" in capsys.readouterr().err
    assert refused(monkeypatch, "--temperatures", "1", "0") == 2
    assert "argument --temperatures: 0.0 is not positive" in capsys.readouterr().err


def test_without_matplotlib_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert str(refused(monkeypatch)).startswith("study error: matplotlib: not installed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_study_runs_on_digits_and_repeats_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    done = python(str(SCRIPTS / "study_estimators.py"), "--out", "study", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "study"
    assert (folder / "error_against_time.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "tables.md").read_text() == done.stdout.removesuffix("\n")
    files = sorted((folder / "cells").iterdir())
    cells = [json.loads(path.read_text()) for path in files]
    base = {json.dumps([c["estimator"], c["options"]]): c for c in cells if c["part"] == "base"}
    exact, drawn = base['["exact_ggn", {}]'], base['["mc_fisher", {"num_draws": 1}]']
    assert exact["same_samples"]["relative_error"] < 1e-4 < drawn["same_samples"]["relative_error"]
    assert exact["same_samples"]["iou"]["w2h"]["0.9"] > 0.99
    assert exact["gradient_passes"] > drawn["gradient_passes"] > 1
    assert {c["samples"] for c in cells} == {10, 20}

    from study_estimators import main

    stamps = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["study_estimators.py", "--out", "study", *SMALL])
    main()
    renewed = {path for path in files if path.stat().st_mtime_ns != stamps[path]}
    assert renewed == {files[0]}
    told = refused(monkeypatch, "--out", "study", *SMALL, "--draws", "2")
    assert told == "study error: out: study holds a study with draws=[1], not [2]"
