"""Compare masks of one network: overlap, layer budgets, ranks of the scores.

    python scripts/compare_masks.py RUN1 RUN2 [RUN3 ...] [--out DIR]

RUN is a run directory or a mask file (``*.safetensors``). Prints Markdown; with ``--out``, DIR gets
``masks.md``, ``masks.csv`` and the figure ``masks.png``. Ranks are compared between runs that have
stored their scores (``scoring.save_scores=true``). What the numbers mean: pai/reports/compare.py.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from pai.masking.budgets import read_mask
from pai.output import SCORES_FILE
from pai.records import read_run, write_bytes_atomically
from pai.reports.compare import MaskArrays, Pair, as_csv, compare, densities, markdown
from pai.reports.extra import require
from pai.reports.write import write_png


def read(path: Path) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Return name, mask and scores (if stored) of a run directory or mask file.

    Raises:
        ValueError: there is no mask, or it cannot be read.
    """
    mask = {name: keep.numpy() for name, keep in read_mask(path)[1].items()}
    record = read_run(path) if path.is_dir() else None
    stored = path / SCORES_FILE
    scores = load_file(stored) if path.is_dir() and stored.is_file() else None
    order = [layer["name"] for layer in record["mask"]["layers"]] if record else list(mask)
    mask = {layer: mask[layer] for layer in order if layer in mask} | mask
    return (record["name"] if record else path.stem), mask, scores


def differing(names: Sequence[str]) -> list[str]:
    """Return the names of runs without the settings (``key=value,...``) that all have in common.

    Example:
        >>> differing(["model=gcn,seed=0", "model=gcn,seed=1,scope=erk"])
        ['seed=0', 'seed=1,scope=erk']
    """
    settings = [name.split(",") for name in names]
    common = set.intersection(*map(set, settings))
    return [
        ",".join(part for part in parts if part not in common) or name
        for name, parts in zip(names, settings, strict=True)
    ]


def write_figure(pairs: Sequence[Pair], masks: Mapping[str, MaskArrays], path: Path) -> None:
    """Draw IoU as a matrix and the density of each layer, as PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = list(masks)
    matrix = [[1.0] * len(names) for _ in names]
    for pair in pairs:
        i, j = names.index(pair.first), names.index(pair.second)
        matrix[i][j] = matrix[j][i] = pair.iou
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
        left.set(xticks=range(len(names)), yticks=range(len(names)), title="IoU of kept weights")
        labels = [name.replace(",", "\n") for name in names]
        left.set_xticklabels(labels, rotation=45, ha="right")
        left.set_yticklabels(labels)
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                color = "white" if value > 0.5 else "black"
                left.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
        for name, values in densities(masks).items():
            right.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
        right.set(xlabel="layer", ylabel="fraction of weights kept", ylim=(0, 1.1))
        right.set_yscale("symlog", linthresh=1e-3)
        right.legend(frameon=False)
        write_png(figure, path)


def main() -> None:
    """Parse the command line, compare and print; exit 1 with one line if it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories or mask files")
    parser.add_argument("--out", type=Path, help="folder for masks.md, masks.csv, masks.png")
    arguments = parser.parse_args()
    try:
        if len(arguments.runs) < 2:
            raise ValueError("give at least two runs")
        if arguments.out is not None:
            require("matplotlib")
        found = [read(path) for path in arguments.runs]
        told = differing([name for name, _, _ in found])
        names = [
            name if told.count(name) == 1 else f"{name} ({path})"
            for name, path in zip(told, arguments.runs, strict=True)
        ]
        if len(set(names)) < len(names):
            raise ValueError("a run is given twice")
        masks = {name: mask for name, (_, mask, _) in zip(names, found, strict=True)}
        scores = {n: s for n, (_, _, s) in zip(names, found, strict=True) if s is not None}
        pairs = compare(masks, scores)
    except ValueError as error:
        sys.exit(f"compare error: {error}")
    text = markdown(pairs, masks)
    print(text)
    if arguments.out is not None:
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sys.exit(f"--out: cannot make {arguments.out}: {error.strerror}")
        write_bytes_atomically(arguments.out / "masks.md", text.encode())
        write_bytes_atomically(arguments.out / "masks.csv", as_csv(pairs).encode())
        write_figure(pairs, masks, arguments.out / "masks.png")


if __name__ == "__main__":
    main()
