"""How the scores of a network are distributed: a compact histogram for the run directory."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BINS_PER_DECADE = 10
_LOWEST, _HIGHEST = -60, 40  # decades; the outermost bins hold what lies beyond


def score_histogram(scores: Mapping[str, Tensor]) -> dict[str, Any]:
    """Count the scores of each tensor by sign and by ``k = floor(10 log10 |score|)``.

    Bin ``k`` holds ``10^(k/10) <= |score| < 10^((k+1)/10)``, so any quantile of ``|score|``
    can be read off to within a factor of 1.26. One pass over the scores, a kilobyte or two each.

    Returns:
        ``bins_per_decade`` and ``layers``: per tensor its ``name``, the counts ``total``,
        ``zeros``, ``nonfinite``, and for each sign, ``positive`` and ``negative``, the bins from
        the first to the last that is not empty: ``{"first": k, "counts": [...]}``.
    """
    return {
        "bins_per_decade": BINS_PER_DECADE,
        "layers": [_layer(name, values.detach().flatten()) for name, values in scores.items()],
    }


def _layer(name: str, values: Tensor) -> dict[str, Any]:
    finite = values.isfinite()
    return {
        "name": name,
        "total": values.numel(),
        "zeros": int((values == 0).sum()),
        "nonfinite": values.numel() - int(finite.sum()),
        "positive": _counts(values[finite & (values > 0)]),
        "negative": _counts(-values[finite & (values < 0)]),
    }


def _counts(magnitudes: Tensor) -> dict[str, Any]:
    if magnitudes.numel() == 0:
        return {"first": 0, "counts": []}
    bins = (magnitudes.log10() * BINS_PER_DECADE).floor()
    bins = bins.clamp(_LOWEST * BINS_PER_DECADE, _HIGHEST * BINS_PER_DECADE - 1).to(torch.int64)
    first = int(bins.min())
    return {"first": first, "counts": torch.bincount(bins - first).tolist()}
