"""Scorers that are a product of three factors: gradient x curvature diagonal x saliency formula."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pai.curvature import (
    EmpiricalFisher,
    Estimator,
    ExactGGN,
    Hutchinson,
    Matrix,
    MonteCarloFisher,
    curved_parameters,
)
from pai.objective import Batches, LossFn, Named, check_temperature, mean_gradient
from pai.scorers.base import Scorer

Saliency = Callable[..., Tensor]


@dataclass(frozen=True)
class FactorScorer(Scorer):
    """``saliency(w, g, h)`` with those factors that the formula names (:mod:`pai.saliency`).

    ``g`` is the mean gradient and ``h`` the diagonal estimated by ``estimator``, both of the mean
    loss at ``f / temperature`` over the same samples.
    """

    saliency: Saliency
    temperature: float = 1.0
    estimator: Estimator | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if "h" in self._needs() and self.estimator is None:
            raise ValueError("this saliency needs a curvature diagonal: give an estimator")

    def _needs(self) -> set[str]:
        return set(inspect.signature(self.saliency).parameters)

    def describe(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter]
    ) -> dict[str, Any]:
        """Name the curvature matrix; for Gauss-Newton, test whether its diagonal is the Hessian's.

        ``is_hessian_diagonal`` is true unless ``curved`` lists tensors with second derivatives.
        """
        if self.estimator is None:
            return {}
        if self.estimator.matrix != "gauss_newton":
            return {"matrix": self.estimator.matrix}
        curved = curved_parameters(model, batches, parameters)
        return {"matrix": "gauss_newton", "is_hessian_diagonal": not curved, "curved": curved}

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Compute the factors the saliency names, then the saliency of each parameter."""
        needs = self._needs()
        factors: dict[str, Mapping[str, Tensor]] = {}
        if "w" in needs:
            factors["w"] = {name: p.detach() for name, p in parameters.items()}
        if "h" in needs:
            assert self.estimator is not None
            estimate = self.estimator(
                model, batches, parameters,
                loss_fn=loss_fn, generator=generator, with_gradient="g" in needs,
            )  # fmt: skip
            factors["h"] = estimate.diagonal
            if estimate.gradient is not None:
                factors["g"] = estimate.gradient
        elif "g" in needs:
            factors["g"] = mean_gradient(model, batches, parameters, loss_fn, self.temperature)
        return {
            name: self.saliency(**{key: values[name] for key, values in factors.items()})
            for name in parameters
        }


def gradient_scorer(saliency: Saliency, temperature: float = 1.0) -> FactorScorer:
    """Build a first-order scorer (``grad_norm``, ``snip``): one gradient pass."""
    return FactorScorer(saliency, temperature)


def empirical_fisher_scorer(saliency: Saliency, temperature: float = 1.0) -> FactorScorer:
    """Build a scorer on :class:`pai.curvature.EmpiricalFisher` (``fd``, ``fp``, ``fts``)."""
    return FactorScorer(saliency, temperature, EmpiricalFisher(temperature))


def hutchinson_scorer(
    saliency: Saliency,
    temperature: float = 200.0,
    num_probes: int = 10,
    batch_size: int | None = 1,
    matrix: Matrix = "hessian",
) -> FactorScorer:
    """Build a scorer on :class:`pai.curvature.Hutchinson` (``hd``, ``hp``, ``hts``)."""
    estimator = Hutchinson(temperature, num_probes, batch_size, matrix)
    return FactorScorer(saliency, temperature, estimator)


def exact_ggn_scorer(
    saliency: Saliency, temperature: float = 1.0, max_classes: int = 200
) -> FactorScorer:
    """Build a scorer on :class:`pai.curvature.ExactGGN` (``gd``, ``gp``, ``gts``)."""
    return FactorScorer(saliency, temperature, ExactGGN(temperature, max_classes))


def mc_fisher_scorer(
    saliency: Saliency, temperature: float = 1.0, num_draws: int = 1
) -> FactorScorer:
    """Build a scorer on :class:`pai.curvature.MonteCarloFisher` (``md``, ``mp``, ``mts``)."""
    return FactorScorer(saliency, temperature, MonteCarloFisher(temperature, num_draws))
