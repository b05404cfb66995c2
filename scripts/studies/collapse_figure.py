"""The figure of the study of layer collapse: the density of each layer, a panel per network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from pai.reports.write import write_png
from studies.collapse import Row, subjects

LOWEST = 1e-5


def write_figure(rows: Sequence[Row], sparsity: float, path: Path) -> None:
    """Draw mean density over seeds at ``sparsity`` by layer and scorer, as PNG; crosses: empty.

    A cross is where the layer is empty for at least one seed.
    """
    here = [row for row in rows if row.sparsity == sparsity]
    panels = list(dict.fromkeys((model, warmup) for model, warmup, _ in subjects(here)))
    with mpl.rc_context({"font.size": 7}):
        figure = Figure(figsize=(8, 1.35 * len(panels) + 0.6), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        colors = mpl.colormaps["viridis"].with_extremes(bad="white")
        image: Any = None
        for axis, (model, warmup) in zip(axes, panels, strict=True):
            own = [s for s in subjects(here) if s[:2] == (model, warmup)]
            grid, empty = _grid(here, own)
            image = axis.imshow(
                np.ma.masked_less_equal(grid, 0), aspect="auto", cmap=colors,
                norm=LogNorm(LOWEST, 1.0),
            )  # fmt: skip
            lines, columns = np.nonzero(empty)
            axis.scatter(columns, lines, marker="x", s=9, color="#D55E00", linewidths=0.9)
            axis.set(yticks=range(len(own)), xticks=[], title=f"{model}, warmup={warmup}")
            axis.set_yticklabels([scorer for _, _, scorer in own])
        axes[-1].set_xlabel("layer, from input to output")
        figure.colorbar(
            image, ax=list(axes), label=f"fraction of weights kept at sparsity {sparsity:g}"
        )
        write_png(figure, path)


def _grid(rows: Sequence[Row], own: Sequence[tuple[str, str, str]]) -> tuple[Any, Any]:
    """Return mean density and whether some seed's layer is empty, each ``[scorers, layers]``."""
    densities, empty = [], []
    for subject in own:
        found = [row for row in rows if row.subject == subject]
        values = np.array([list(row.density.values()) for row in found])
        densities.append(values.mean(axis=0))
        empty.append((values == 0).any(axis=0))
    return np.array(densities), np.array(empty)
