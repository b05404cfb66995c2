"""Histograms of scores, against counting by hand."""

import json
import math

import torch

from pai.histogram import BINS_PER_DECADE, score_histogram


def test_scores_are_counted_by_sign_and_tenth_of_a_decade() -> None:
    scores = {
        "a": torch.tensor([[1.5, 1.05, 0.0], [-20.0, math.nan, math.inf]]),
        "b": torch.zeros(2, 3),
    }
    first, second = score_histogram(scores)["layers"]
    # floor(10 log10 x): 1.5 -> 1, 1.05 -> 0, 20 -> 13
    assert first == {
        "name": "a", "total": 6, "zeros": 1, "nonfinite": 2,
        "positive": {"first": 0, "counts": [1, 1]}, "negative": {"first": 13, "counts": [1]},
    }  # fmt: skip
    assert second["zeros"] == second["total"] == 6
    assert second["positive"] == second["negative"] == {"first": 0, "counts": []}


def test_every_score_is_counted_once_and_quantiles_are_exact_to_one_bin() -> None:
    values = torch.randn(20_001, generator=torch.Generator().manual_seed(0)) ** 3
    found = score_histogram({"w": values})
    (layer,) = found["layers"]
    counts: dict[int, int] = {}
    for sign in ("positive", "negative"):
        for offset, count in enumerate(layer[sign]["counts"]):
            bin_ = layer[sign]["first"] + offset
            counts[bin_] = counts.get(bin_, 0) + count
    assert sum(counts.values()) + layer["zeros"] == 20_001
    seen, median_bin = 0, 0
    for median_bin in sorted(counts):
        seen += counts[median_bin]
        if seen > 10_000:
            break
    median = values.abs().median().item()
    low, high = (10 ** ((median_bin + step) / BINS_PER_DECADE) for step in (0, 1))
    assert low <= median < high
    assert layer["positive"]["counts"][0] > 0
    assert layer["positive"]["counts"][-1] > 0


def test_extreme_scores_are_in_the_outermost_bins_and_the_file_stays_small() -> None:
    values = torch.tensor([1e-300, 1e300, 1.0], dtype=torch.float64)
    (layer,) = score_histogram({"w": values})["layers"]
    assert layer["positive"]["first"] == -600
    assert sum(layer["positive"]["counts"]) == 3
    assert len(layer["positive"]["counts"]) == 1000
    usual = score_histogram({"w": torch.randn(1_000_000)})
    assert len(json.dumps(usual)) < 2000
