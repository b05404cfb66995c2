"""Diagonals of curvature matrices: one estimator per file, one shape for all of them."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from pai.curvature.affine import curved_parameters as curved_parameters
from pai.curvature.estimate import Estimate as Estimate
from pai.curvature.estimate import Estimator as Estimator
from pai.curvature.fisher import EmpiricalFisher as EmpiricalFisher
from pai.curvature.fisher import MonteCarloFisher as MonteCarloFisher
from pai.curvature.ggn import ExactGGN as ExactGGN
from pai.curvature.hutchinson import Hutchinson as Hutchinson
from pai.curvature.hutchinson import Matrix as Matrix
from pai.errors import nearest
from pai.finite import check_finite, first_source
from pai.memory import within_memory
from pai.objective import Batches, LossFn, Named, check_batches
from pai.prunable import chosen_or_prunable
from pai.state import scoring_mode

_ESTIMATORS: dict[str, type[Any]] = {
    "empirical_fisher": EmpiricalFisher,
    "mc_fisher": MonteCarloFisher,
    "exact_ggn": ExactGGN,
    "hutchinson": Hutchinson,
}


def curvature_diagonal(
    model: nn.Module,
    batches: Batches,
    estimator: Literal["empirical_fisher", "mc_fisher", "exact_ggn", "hutchinson"] = "exact_ggn",
    *,
    temperature: float = 1.0,
    loss_fn: LossFn | None = None,
    generator: torch.Generator | None = None,
    parameters: Mapping[str, nn.Parameter] | None = None,
    **options: Any,
) -> Named:
    """Return a curvature diagonal of the mean loss at ``f / temperature``, in eval mode.

    Each estimator's formula, cost and source stand at its class: :class:`EmpiricalFisher`,
    :class:`MonteCarloFisher` (``num_draws``), :class:`ExactGGN`, :class:`Hutchinson`
    (``num_probes``, ``batch_size``, ``matrix``). The model is bit-identical afterwards.

    Args:
        model: any module, on any device.
        batches: re-iterable of ``(inputs, targets)`` on the model's device.
        estimator: which of the four.
        temperature: ``T > 0``; the loss is taken at ``f / T``.
        loss_fn: from (outputs, targets) to a scalar mean over samples; default cross-entropy.
        generator: makes the stochastic estimators reproducible.
        parameters: by name; default :func:`pai.prunable_parameters`.
        options: further options of the estimator.

    Returns:
        One tensor per parameter, in its shape: the mean over samples.

    Raises:
        ValueError: an unknown estimator, option or value of one; no batch, or only once readable;
            no parameters, or complex ones.
        RunError: a number is NaN or infinite, or memory does not suffice for a single sample.

    Example:
        >>> from torch.nn import Linear, ReLU, Sequential
        >>> model = Sequential(Linear(4, 8), ReLU(), Linear(8, 3))
        >>> batches = [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))]
        >>> curvature_diagonal(model, batches, estimator="exact_ggn")["0.weight"].shape
        torch.Size([8, 4])
    """
    if estimator not in _ESTIMATORS:
        known = f"{', '.join(_ESTIMATORS)}{nearest(estimator, _ESTIMATORS)}"
        raise ValueError(f"estimator: {estimator!r} is not one of {known}")
    try:
        method: Estimator = _ESTIMATORS[estimator](temperature=temperature, **options)
    except TypeError as error:
        raise ValueError(f"estimator {estimator}: {error}") from None
    batches, chosen = check_batches(batches), chosen_or_prunable(model, parameters)

    def compute() -> Named:
        return method(
            model, batches, chosen, loss_fn=loss_fn, generator=generator, with_gradient=False
        ).diagonal

    with scoring_mode(model):
        diagonal = within_memory(compute, model, generator)
        check_finite("numbers", diagonal, lambda: first_source(model, batches))
    return diagonal
