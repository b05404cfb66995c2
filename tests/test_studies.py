"""The studies of collapse, seeds and tasks: their numbers on cases worked out, and whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHECKOUT, plan
from torch import nn

from pai.errors import ConfigError
from pai.masking.effective import Connectivity
from pai.masking.mask import load_mask
from pai.masking.select import select
from pai.runner import run
from pai.tracking.base import RunLabels


@pytest.fixture(autouse=True)
def _scripts_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CHECKOUT / "scripts"))


def tiny_run(folder: Path, scorer: str, *overrides: str) -> None:
    """Run something tiny in ``folder`` whose record names its choices."""
    choices = {"model": "resnet20", "warmup": "none", "scorer": scorer}
    labels = RunLabels(name="tiny", group=None, job_type="run", choices=choices)
    stored = ("warmup=none", "scoring.save_scores=true")
    run(plan(f"scorer={scorer}", *stored, *overrides), folder, labels)


def called(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> str | int | None:
    """Call ``main`` of a script in this process and return with what it exits."""
    module = __import__(script)
    monkeypatch.setattr("sys.argv", [f"{script}.py", *arguments])
    try:
        module.main()
    except SystemExit as exit_:
        return exit_.code
    return 0


def test_a_layer_is_empty_from_the_sparsity_at_which_its_best_weight_goes() -> None:
    from studies.collapse import empty_from

    scores = {"a": torch.tensor([[9.0, 8.0], [1.0, 2.0]]), "b": torch.tensor([3.0, -1.0, 7.0, 0.5]),
              "c": torch.tensor([4.0, 4.0])}  # fmt: skip
    since = empty_from(scores)
    assert since == {"a": 1.0, "b": 0.8, "c": 0.7}  # 2 and 3 of 10 weights are better elsewhere
    for kept in range(1, 10):
        mask = select(scores, 1 - kept / 10)
        empty = {name for name, keep in mask.items() if not keep.any()}
        assert empty == {name for name, s in since.items() if 1 - kept / 10 >= s - 1e-9}


def test_a_row_names_empty_dead_and_cutting_layers() -> None:
    from studies.collapse import describe

    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    network = Connectivity(model, torch.zeros(1, 2))
    some = torch.tensor([[True, False], [False, False]])
    mask = {"0.weight": some, "2.weight": torch.zeros(2, 2, dtype=torch.bool), "4.weight": some}
    row = describe(("m", "none", "snip"), 0, 0.8, mask, network)
    assert (row.empty, row.dead) == (("2.weight",), ("0.weight", "4.weight"))
    assert row.effective_density == 0
    assert row.cut_at == "2.weight"
    whole = describe(("m", "none", "snip"), 0, 0.25, mask | {"2.weight": some}, network)
    assert (whole.empty, whole.dead, whole.cut_at) == ((), (), None)
    assert whole.effective_density == 3 / 12
    assert whole.density["0.weight"] == 0.25


def row(sparsity: float, seed: int, empty: tuple[str, ...], cut_at: str | None) -> Any:
    from studies.collapse import Row

    density = {"a.weight": 0.0 if empty else 0.5, "b.weight": 0.5}
    return Row(("net", "none", "synflow"), seed, sparsity, 0.1, empty, (), cut_at, density)


def test_the_tables_of_collapse_say_where_it_begins() -> None:
    from studies.collapse import Onset, count_table, onset_table

    lost = ("a.weight",)
    rows = [row(0.9, 0, (), None), row(0.9, 1, (), None),
            row(0.99, 0, lost, "a.weight"), row(0.99, 1, (), None)]  # fmt: skip
    assert onset_table(rows, []).splitlines()[2] == (
        "| net | none | synflow | `a` | tested: 0.99 | 0.99 (1 of 2; `a`) |"
    )
    subject = ("net", "none", "synflow")
    exact = [Onset(subject, seed, "b.weight", s) for seed, s in ((0, 0.95), (1, 0.9))]
    assert "| `b` | 0.9000-0.9500 |" in onset_table(rows, exact)
    late = [Onset(subject, seed, "b.weight", s) for seed, s in ((0, 0.99996), (1, 1.0))]
    assert "| `b` | 0.99996-never |" in onset_table(rows, late)
    assert "|  | never |" in onset_table(rows, late[1:])
    assert count_table(rows).splitlines()[2] == (
        "| net | none | synflow | 2 | 0.0 | 0.5 (cut: 1 of 2) |"
    )


def test_masks_from_stored_scores_are_those_of_runs_at_their_sparsities(tmp_path: Path) -> None:
    from studies.stored import completed, masks

    for sparsity in (0.9, 0.98):
        tiny_run(tmp_path / str(sparsity), "snip", "training.epochs=0", f"sparsity={sparsity}")
    found = completed(tmp_path)
    made = dict(masks(found.runs[0], found.layers[str(found.runs[0].folder)], (0.9, 0.98)))
    for sparsity, mask in made.items():
        stored = load_mask(tmp_path / str(sparsity) / "mask.safetensors")
        assert all(torch.equal(mask[name], stored[name]) for name in stored)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("sanity=shuffle",), r"its mask is not the one that its scores give at sparsity=0.9"),
        (("sparsity_is=effective",), r"sparsity_is=effective; which masks follow"),
    ],
)  # fmt: skip
def test_masks_that_do_not_follow_from_the_scores_are_refused(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    from studies.stored import completed, masks

    tiny_run(tmp_path, "snip", "training.epochs=1", *options)
    found = completed(tmp_path)
    with pytest.raises(ConfigError, match=words):
        list(masks(found.runs[0], found.layers[str(found.runs[0].folder)], (0.9, 0.98)))


def test_of_several_rounds_there_is_the_runs_own_mask(tmp_path: Path) -> None:
    from studies.stored import completed, masks

    rounds = ("baseline=lottery_ticket", "baseline.rounds=2", "baseline.rewind_step=0")
    tiny_run(tmp_path, "snip", "training.epochs=1", *rounds)
    found = completed(tmp_path)
    made = dict(masks(found.runs[0], found.layers[str(tmp_path)], (0.5, 0.98)))
    assert set(made) == {0.9}


def test_copies_count_once_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    from studies.command import write_tables
    from studies.stored import completed
    from sweep_records import record, write

    runs = [record("snip", seed=0), record("snip", seed=0), record("snip", seed=1),
            record("hts", seed=0), record("hts", seed=0, accuracy=0.7),
            record("hts", seed=1, status="failed", error="boom")]  # fmt: skip
    found = completed(write(tmp_path, *runs))
    assert [run.folder.name for run in found.runs] == ["run0", "run2"]
    write_tables(["| a |"], found.left_out, tmp_path)
    lines = (tmp_path / "tables.md").read_text().splitlines()
    assert lines[:2] == ["| a |", ""]
    assert [line.split("/")[-1] for line in lines[2:4]] == [
        "run5: failed: boom",
        "run0, same result",
    ]
    assert len(lines) == 6
    with pytest.raises(ConfigError, match="no completed run"):
        completed(write(tmp_path / "other", record(status="running")))


def test_the_interval_of_pairs_resamples_seeds() -> None:
    from studies.seeds import spread

    equal = spread({(0, 1): 0.5, (0, 2): 0.5, (1, 2): 0.5})
    assert (equal.mean, equal.low, equal.high) == (0.5, 0.5, 0.5)
    # three seeds, the third apart: resamples without it have 0.9, those with only one other 0.1
    apart = spread({(0, 1): 0.9, (0, 2): 0.1, (1, 2): 0.1})
    assert apart.mean == pytest.approx(1.1 / 3)
    assert (apart.low, apart.high) == (0.1, 0.9)
    many = spread({(i, j): 0.5 + 0.01 * (i + j) for j in range(8) for i in range(j)})
    assert many.low < many.mean < many.high


def study(folder: Path) -> Path:
    """Run a tiny study of seeds."""
    for seed in (0, 1):
        for part in ("initialization", "data", "probes"):
            tiny_run(folder / f"{part}{seed}", "snip", "training.epochs=0", f"+seeds.{part}={seed}")
        for draws in (1, 16):
            options = ("training.epochs=0", f"scorer.num_draws={draws}", f"+seeds.probes={seed}")
            tiny_run(folder / f"draws{draws}-{seed}", "md", *options)
        tiny_run(folder / f"trained{seed}", "snip", f"+seeds.data={seed}")
    return folder


def test_the_study_of_seeds_tells_the_kinds_of_seeds_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from studies.seeds import agreements
    from studies.stored import completed

    runs = study(tmp_path / "runs")
    assert called(monkeypatch, "study_seeds", str(runs), "--out", str(tmp_path / "out")) == 0
    made = agreements(completed(runs), [0.9])
    found = {(a.part, a.scorer, *a.options.values()): a for a in made}
    assert found["probes", "snip"].iou.mean == 1.0  # snip draws nothing
    assert found["probes", "snip"].distance.mean == 0.0
    assert found["initialization", "snip"].iou.mean < found["data", "snip"].iou.mean < 1
    assert found["probes", "md", 1].iou.mean < found["probes", "md", 16].iou.mean < 1
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| probes | snip | 0.9 | 2 | 1.000 (1.000-1.000) |" in text
    assert "| data | snip | 2 | " in text
    assert (tmp_path / "out" / "seeds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"config": {"seeds": {"data": 1}, "training": {"epochs": 9}}}, r"training\.epochs: "),
        ({"config": {"seeds": {"data": 1}}, "sparsity": 0.98}, r"sparsity: "),
        ({"config": {"seeds": {"data": 1}}, "seed": 5}, r"seed: the runs have 0, 5; only one"),
    ],
)
def test_accuracies_of_seeds_are_of_one_setting(
    tmp_path: Path, other: dict[str, Any], words: str
) -> None:
    from studies.seeds import accuracy_table
    from studies.stored import completed
    from sweep_records import record, write

    usual: dict[str, Any] = {"config": {"seeds": {"data": 0}}}
    write(tmp_path, record("snip", **usual), record("snip", **other))
    with pytest.raises(ConfigError, match=words):
        accuracy_table(completed(tmp_path).runs)


def test_the_study_of_collapse_is_of_one_setting(tmp_path: Path) -> None:
    from studies.collapse import measure
    from studies.stored import completed
    from sweep_records import record, write

    write(tmp_path / "epochs", record("snip"), record("snip", config={"training": {"epochs": 9}}))
    write(tmp_path / "sparsity", record("snip", 0.9), record("snip", 0.98))
    for key in ("epochs", "sparsity"):
        with pytest.raises(ConfigError, match=f"{key}: runs of .*; runs of another setting belong"):
            measure(completed(tmp_path / key), [0.9])


def test_the_study_of_collapse_reads_scores_and_masks_of_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    tiny_run(tmp_path / "one", "magnitude", "training.epochs=0")
    rounds = ("schedule.rounds=2", "sparsity=0.99", "training.epochs=0")
    tiny_run(tmp_path / "many", "synflow", *rounds)
    grid = ("--sparsities", "0.9", "0.99", "0.999")
    assert called(monkeypatch, "study_collapse", str(tmp_path), *grid) == 0
    text = (tmp_path / "tables.md").read_text()
    assert "| model | warmup | scorer | layers | 0.9 | 0.99 | 0.999 |" in text
    (line,) = [line for line in text.splitlines() if "synflow" in line and "up to" not in line]
    assert line.startswith("| resnet20 | none | synflow | 9 |  | ")  # its own sparsity only
    assert text.count("| resnet20 | none | magnitude |") == 2
    assert (tmp_path / "collapse.png").read_bytes().startswith(b"\x89PNG")
    told = called(monkeypatch, "study_collapse", str(tmp_path), "--sparsities", "0.9")
    assert told == "study error: --figure-at: 0.99 is not among --sparsities"
    few = ("--sparsities", "0.9", "0.99", "--figure-at", "0.9")
    told = called(monkeypatch, "study_collapse", str(tmp_path / "many"), *few)
    assert told == "study error: --figure-at: no run has a mask of 0.9"
    (tmp_path / "one" / "scores.safetensors").unlink()
    assert "run with scoring.save_scores=true" in str(
        called(monkeypatch, "study_collapse", str(tmp_path), *grid)
    )


def task(name: str, values: dict[str, tuple[float, ...]], *, good: int = 1) -> Any:
    from studies.tasks import ACCURACY, PERPLEXITY, Task

    by_seed = {scorer: dict(enumerate(own)) for scorer, own in values.items()}
    return Task(name, 0.9, ACCURACY if good == 1 else PERPLEXITY, by_seed, {0: 1.0})


def test_rank_correlations_turn_metrics_so_that_high_is_good() -> None:
    from studies.tasks import between, repeatability

    images = task("images", {"a": (0.9, 0.9), "b": (0.8, 0.8), "c": (0.7, 0.7), "d": (0.1, 0.1)})
    text = task("text", {"a": (3, 3), "b": (4, 4), "c": (6, 6), "d": (5, 5), "e": (1, 1)}, good=-1)
    tau, rho, count = between(images, text)
    assert count == 4
    assert tau.mean == tau.low == tau.high == pytest.approx(4 / 6)  # one of six pairs is swapped
    assert rho.mean == pytest.approx(0.8)
    assert repeatability(images) == pytest.approx(1)
    assert repeatability(task("x", {"a": (1, 2), "b": (2, 1), "c": (3, 3)})) == pytest.approx(1 / 3)


def test_differences_are_paired_by_seed() -> None:
    from studies.tasks import difference

    own, other = {0: 0.5, 1: 0.7, 2: 0.6}, {0: 0.4, 1: 0.5, 2: 0.6, 3: 9.0}
    assert difference(own, other) == pytest.approx((0.1, 0.0, 0.2))


def test_the_study_of_tasks_reads_runs_of_several_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweep_records import record, write

    def text(scorer: str, seed: int, perplexity: float) -> Any:
        return record(scorer, 0.9, seed, 0.3, choices={"dataset": "text"},
                      config={"dataset": {"_target_": "pai.data.text.Text"}},
                      metrics={"test_perplexity": perplexity})  # fmt: skip

    for seed in (0, 1):
        images = [record(n, 0.9, seed, a) for n, a in (("snip", 0.8), ("random", 0.5 + seed / 10))]
        write(tmp_path, *images, record("none", 0.0, seed, 0.9))
        write(tmp_path, text("snip", seed, 9.0), text("random", seed, 12.0))
    assert called(monkeypatch, "study_tasks", str(tmp_path)) == 0
    lines = (tmp_path / "tables.md").read_text().splitlines()
    assert "| 0.9 | digits, text | 2 | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |" in lines
    assert "| random | 2 | 55.00 | 7.07 | -25.00 (-30.00 to -20.00) |" in lines
    assert "| random | 2 | 12.00 | 0.00 | +3.00 (+3.00 to +3.00) |" in lines
    assert "| dense | 2 | 90.00 | 0.00 |  |" in lines
    told = called(monkeypatch, "study_tasks", str(tmp_path), "--reference", "gts")
    assert told == "study error: digits at 0.9: no runs of scorer=gts"
    write(tmp_path, record("snip", 0.9, 2, 0.1, config={"training": {"epochs": 0}}))
    told = called(monkeypatch, "study_tasks", str(tmp_path))
    assert "training.epochs: runs of one table differ in it: 0 in 1 run" in str(told)
