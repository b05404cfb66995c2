"""Comparing masks of one network: overlap, layer budgets, ranks of scores. Arrays in, text out."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pai.reports.cells import no_formula
from pai.reports.measures import rank_correlation
from pai.reports.numbers import share

MaskArrays = Mapping[str, NDArray[np.bool_]]
ScoreArrays = Mapping[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Pair:
    """How two masks a, b of one network compare; ``a_l, b_l`` weights kept in layer l of ``n_l``.

    Attributes:
        first: name of the first mask.
        second: name of the second.
        iou: intersection over union of the kept weights of all layers.
        iou_by_chance: what independent random masks of the same layer budgets have: the expected
            intersection ``sum_l a_l b_l / n_l`` over the expected union.
        budget_distance: total variation ``1/2 sum_l |a_l / a - b_l / b|`` between the distributions
            of the kept weights over the layers: the share of weights that one would have to move to
            other layers to have the other's budgets. In 0..1.
        rank_correlation: Spearman's, of the scores of all weights; ``None`` without scores.
        layer_iou: by layer; ``None`` where neither mask keeps a weight.
    """

    first: str
    second: str
    iou: float
    iou_by_chance: float
    budget_distance: float
    rank_correlation: float | None
    layer_iou: Mapping[str, float | None]


def check_alike(masks: Mapping[str, MaskArrays]) -> None:
    """Raise ``ValueError`` unless all masks are of one network and keep a weight.

    The message names what differs first: a layer that one has and the other has not, or a shape.
    """
    reference, first = next(iter(masks.items()))
    for name, mask in masks.items():
        for layer in sorted({*first, *mask}):
            if layer not in mask or layer not in first:
                without = name if layer not in mask else reference
                raise ValueError(
                    f"{reference} and {name} are of different networks: {without} has no {layer!r}"
                )
            if mask[layer].shape != first[layer].shape:
                raise ValueError(
                    f"{reference} and {name} are of different networks: {layer!r} has shapes "
                    f"{first[layer].shape} and {mask[layer].shape}"
                )
        if not any(keep.any() for keep in mask.values()):
            raise ValueError(f"{name} keeps no weight")


def compare(
    masks: Mapping[str, MaskArrays], scores: Mapping[str, ScoreArrays] | None = None
) -> list[Pair]:
    """Compare all pairs of masks.

    Args:
        masks: by name; each by layer, True = kept.
        scores: of some of the masks, by the same names; where both of a pair are there, their
            ranks are correlated.

    Raises:
        ValueError: the masks are not of one network, or one keeps no weight.
    """
    check_alike(masks)
    known = scores or {}
    return [
        _pair(a, b, masks[a], masks[b], known.get(a), known.get(b))
        for a, b in itertools.combinations(masks, 2)
    ]


def _pair(
    first: str, second: str, a: MaskArrays, b: MaskArrays,
    scores_a: ScoreArrays | None, scores_b: ScoreArrays | None,
) -> Pair:  # fmt: skip
    layers = list(a)
    total = np.array([a[layer].size for layer in layers], dtype=float)
    kept_a, kept_b, common = (
        np.array([int(kept[layer].sum()) for layer in layers], dtype=float)
        for kept in (a, b, {layer: a[layer] & b[layer] for layer in layers})
    )
    union = kept_a + kept_b - common
    by_chance = float((kept_a * kept_b / total).sum())
    correlation = None
    if scores_a is not None and scores_b is not None:
        correlation = rank_correlation(
            *(np.concatenate([s[layer].ravel() for layer in layers]) for s in (scores_a, scores_b))
        )
    return Pair(
        first, second,
        iou=float(common.sum() / union.sum()),
        iou_by_chance=by_chance / float((kept_a + kept_b).sum() - by_chance),
        budget_distance=float(np.abs(kept_a / kept_a.sum() - kept_b / kept_b.sum()).sum() / 2),
        rank_correlation=correlation,
        layer_iou={
            layer: float(i / u) if u else None
            for layer, i, u in zip(layers, common, union, strict=True)
        },
    )  # fmt: skip


def densities(masks: Mapping[str, MaskArrays]) -> dict[str, list[float]]:
    """Return the fraction of weights kept in each layer, by mask."""
    return {name: [float(keep.mean()) for keep in mask.values()] for name, mask in masks.items()}


def markdown(pairs: Sequence[Pair], masks: Mapping[str, MaskArrays]) -> str:
    """Return the comparison as two Markdown tables: the pairs, and IoU and density by layer."""
    head = ["masks", "IoU", "IoU by chance", "budget distance", "rank correlation"]
    rows = [
        [
            f"{p.first} / {p.second}", f"{p.iou:.3f}", f"{p.iou_by_chance:.3f}",
            f"{p.budget_distance:.3f}", _number(p.rank_correlation),
        ]
        for p in pairs
    ]  # fmt: skip
    kept = densities(masks)
    layers = list(next(iter(masks.values())))
    by_layer = [
        [
            layer,
            *(share(kept[name][i], 4) for name in masks),
            *(_number(p.layer_iou[layer]) for p in pairs),
        ]
        for i, layer in enumerate(layers)
    ]
    columns = [
        "layer",
        *(f"density {n}" for n in masks),
        *(f"IoU {p.first} / {p.second}" for p in pairs),
    ]
    return f"{_table(head, rows)}\n\n{_table(columns, by_layer)}\n"


def as_csv(pairs: Sequence[Pair]) -> str:
    """Return one line per pair and layer, and one per pair for all layers (``layer`` empty)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["first", "second", "layer", "iou", "iou_by_chance", "budget_distance", "rank_correlation"]
    )
    for p in pairs:
        first, second = no_formula(p.first), no_formula(p.second)
        whole = [p.iou, p.iou_by_chance, p.budget_distance, p.rank_correlation]
        writer.writerow([first, second, "", *whole])
        for layer, iou in p.layer_iou.items():
            writer.writerow([first, second, no_formula(layer), iou, None, None, None])
    return out.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )
