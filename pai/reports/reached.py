"""The sparsity that a mask has, beside the one that was asked for."""

from collections.abc import Iterable

from pai.reports.collect import Run

_SHARE = 0.01  # of the weights that were to remain: less than that is not worth a remark


def effective(runs: Iterable[Run]) -> bool:
    """Return whether the sparsity asked for is the effective one, in all runs that were pruned."""
    asked = {run.part("config").get("sparsity_is") for run in runs if not run.dense}
    return asked == {"effective"}


def reached(run: Run) -> float | None:
    """Return the sparsity of the mask, the effective one if that was asked for.

    ``None`` if the record does not say, or it is not defined for the network.
    """
    kind = "effective_sparsity" if effective([run]) else "sparsity"
    found = run.part("mask").get(kind)
    return float(found) if isinstance(found, int | float) else None


def missed(run: Run) -> bool:
    """Return whether the mask has another sparsity than was asked for.

    That is, by more than one weight, and by more than 1 % of those that were to remain. N:M masks
    do where layers cannot be divided into groups, an effective sparsity where one weight more
    connects many.
    """
    found, asked = reached(run), run.value("sparsity")
    if run.dense or found is None or not isinstance(asked, int | float):
        return False
    weights = run.part("mask").get("prunable") or 1
    return abs(found - asked) > max((1 + 1e-6) / weights, _SHARE * (1 - asked))
