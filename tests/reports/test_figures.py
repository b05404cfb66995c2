"""Figures of a sweep: the numbers they show, and that they show something."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sweep_records import record, write

from pai.errors import ConfigError
from pai.reports.collect import collect
from pai.reports.figures import accuracy_figure, density_figure, draw_all, image, time_figure
from pai.reports.grid import Layout, build_grid
from pai.reports.series import read_histogram, scoring_seconds, styles
from pai.reports.style import style

NAMES = {
    "accuracy_against_sparsity", "layer_density", "score_histograms",
    "accuracy_against_scoring_time",
}  # fmt: skip
SCORERS = (
    "random", "magnitude", "grad_norm", "snip", "grasp", "synflow", "fd", "fp", "fts", "hd", "hp",
    "hts", "gd", "gp", "gts", "md", "mp", "mts",
)  # fmt: skip


def histogram(folder: Path) -> None:
    layer = {
        "name": "w", "total": 100, "zeros": 10, "nonfinite": 0,
        "positive": {"first": -20, "counts": [40, 0, 30, 10]},
        "negative": {"first": -30, "counts": [10]},
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps({"bins_per_decade": 10, "layers": [layer]}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a sweep of two scorers with a hostile name among them, and a dense reference."""
    write(
        tmp_path,
        *(record("none", 0.0, s, 0.95 + s / 100) for s in (0, 1)),
        *(
            record(name, sparsity, s, 0.9 - sparsity / 10 + s / 100)
            for name in ("snip", "_$x^2$ <b>") for sparsity in (0.9, 0.98) for s in (0, 1)
        ),
    )  # fmt: skip
    for folder in tmp_path.iterdir():
        histogram(folder)
    return tmp_path


def test_every_figure_is_drawn_in_both_kinds_and_is_not_blank(sweep: Path) -> None:
    figures = draw_all(collect(sweep), Layout())
    assert set(figures) == NAMES
    for figure in figures.values():
        data = image(figure, "png")
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        colours = np.unique(pixels.reshape(-1, 3), axis=0)
        assert len(colours) > 20
        assert 0.005 < (pixels != 255).any(axis=2).mean() < 0.6
    assert image(figures["layer_density"], "pdf").startswith(b"%PDF")


def test_lines_bands_and_the_dense_reference_are_the_tables_numbers(sweep: Path) -> None:
    grid = build_grid(collect(sweep), Layout())
    (axes,) = accuracy_figure(grid).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"none (dense)", "snip", r" _\$x^2\$ <b>"}
    remaining, accuracy = lines["snip"].get_data()
    assert np.allclose(remaining, [0.1, 0.02])
    assert np.allclose(accuracy, [81.5, 80.7])
    assert np.allclose(lines["none (dense)"].get_ydata(), 95.5)
    band = np.asarray(axes.collections[0].get_paths()[0].vertices)[:, 1]
    assert band.max() == pytest.approx(81.5 + 0.5**0.5)
    assert "(%)" in axes.get_ylabel()


def test_an_effective_sparsity_is_on_the_axes(tmp_path: Path) -> None:
    effective: dict[str, Any] = {"config": {"sparsity_is": "effective"}}
    write(tmp_path, *(record("snip", s, 0, 0.5, **effective) for s in (0.9, 0.98)))
    figures = draw_all(collect(tmp_path), Layout())
    (axes,) = figures["accuracy_against_sparsity"].axes
    assert axes.get_xlabel().startswith("effective sparsity: ")
    for name in ("layer_density", "accuracy_against_scoring_time"):
        assert figures[name].axes[0].get_title().startswith("effective sparsity 0.9")


def test_densities_are_means_over_seeds_with_collapsed_layers_as_crosses(tmp_path: Path) -> None:
    def layers(*kept: float) -> dict[str, Any]:
        names = ("in", "middle", "out")
        return {"layers": [{"name": n, "total": 10, "kept": 0, "density": k, "effective_kept": 0}
                           for n, k in zip(names, kept, strict=True)]}  # fmt: skip

    write(
        tmp_path, record("snip", 0.9, 0, mask=layers(0.5, 0.1, 0.0)),
        record("snip", 0.9, 1, mask=layers(0.7, 0.3, 0.0)),
    )  # fmt: skip
    collection = collect(tmp_path)
    figure = density_figure(collection, build_grid(collection, Layout()))
    assert figure is not None
    line, crosses = figure.axes[0].get_lines()
    densities = np.asarray(line.get_ydata())
    assert np.allclose(densities[:2], [0.6, 0.2])
    assert np.isnan(densities[2])
    assert np.asarray(crosses.get_xdata()).tolist() == [2]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["in", "middle", "out"]


def test_networks_with_other_layers_share_no_density_figure(tmp_path: Path) -> None:
    other = record("snip", choices={"model": "b"}, config={"model": {"depth": 1}})
    other["mask"]["layers"] = other["mask"]["layers"][:2]
    write(tmp_path, record("snip", choices={"model": "a"}, config={"model": {"depth": 2}}), other)
    figures = draw_all(collect(tmp_path), Layout(rows=("model",), columns=("sparsity",)))
    assert "layer_density" not in figures
    assert "accuracy_against_sparsity" in figures


def test_scores_from_the_cache_count_with_the_time_of_the_run_that_computed_them(
    tmp_path: Path,
) -> None:
    def entries(**hits: bool) -> dict[str, Any]:
        found = [{"what": "x", "key": key, "hit": hit} for key, hit in hits.items()]
        return {"scoring": {"cache": found}}

    def taking(seconds: float) -> dict[str, Any]:
        return {"timing_s": {"score": seconds}}

    after_training: dict[str, Any] = {
        "choices": {"baseline": "pretrain"}, "config": {"baseline": {"_target_": "mine.Own"}},
    }  # fmt: skip
    write(
        tmp_path,
        record("hts", 0.9, 0, **entries(a=False), **taking(8.0)),
        record("hts", 0.98, 0, **entries(a=True), **taking(0.01)),
        record("hts", 0.9, 1, **entries(gone=True), **taking(0.01)),
        record("snip", 0.9, 0, **taking(0.5)),
        record("none", 0.0, 0),
        record("fts", 0.9, 0, **entries(a=True, gone=True), **taking(0.01)),
        record("magnitude", 0.9, 0, **taking(0.01), **after_training),
    )
    collection = collect(tmp_path)
    found = {folder.name: seconds for folder, seconds in scoring_seconds(collection).items()}
    assert found == {
        "run0": 8.0, "run1": 8.0, "run2": None, "run3": 0.5, "run4": None, "run5": None,
        "run6": 0.01,
    }  # fmt: skip
    grid = build_grid(collection, Layout())
    figure = time_figure(collection, grid)
    assert figure is not None
    assert {row.label for row in grid.rows if row.reference} == {"none", "pretrain, magnitude"}
    shown = {c.get_label(): c[0].get_xdata()[0] for c in figure.axes[0].containers}
    assert shown == {"hts": 8.0, "snip": 0.5}
    assert figure.get_supxlabel().endswith("filled elsewhere: fts")


def test_the_cut_of_a_histogram_is_a_quantile_of_the_scores(tmp_path: Path) -> None:
    (run,) = collect(write(tmp_path, record())).runs
    assert read_histogram(run) is None
    histogram(run.folder)
    found = read_histogram(run)
    assert found is not None
    # from the top: 10 in bin -17, 30 in -18, none in -19, 40 in -20
    assert [found.cut(s) for s in (0.9, 0.89, 0.6, 0.55)] == [-1.7, -1.8, -1.8, -2.0]
    assert found.cut(0.1) is None  # among zeros and negative scores
    assert (found.zeros, sum(found.negative.values()), found.total) == (10, 10, 100)


def test_scorers_look_different_and_always_the_same(tmp_path: Path) -> None:
    assert len({style(name) for name in SCORERS}) == len(SCORERS)
    assert style("hts").color == style("hd").color
    assert style("of somebody") == style("of somebody")
    write(tmp_path, *(record("hts", warmup=w) for w in ("none", "bn_stats")), record("snip"))
    grid = build_grid(collect(tmp_path), Layout(rows=("scorer", "warmup")))
    assert len(set(styles(grid).values())) == 3
    assert len({look.color for look in styles(grid).values()}) == 2


def test_a_sweep_without_results_has_no_figures(tmp_path: Path) -> None:
    write(tmp_path, record(status="failed", error="x"))
    assert draw_all(collect(tmp_path), Layout()) == {}
    with pytest.raises(ConfigError):
        draw_all(collect(tmp_path), Layout(metric="nothing"))
