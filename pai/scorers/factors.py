"""Scorers that are a product of three factors: gradient x curvature diagonal x saliency formula."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
from pai.objective import (
    WHOLE_BATCHES,
    Batches,
    LossFn,
    Named,
    check_temperature,
    mean_gradient,
)
from pai.scorers.base import Scorer
from pai.scorers.memo import is_remembering, remembered
from pai.state import dense_weights

Saliency = Callable[..., Tensor]


@dataclass(frozen=True)
class FactorScorer(Scorer):
    """``saliency(w, g, h)`` with those factors that the formula names (:mod:`pai.saliency`).

    ``g`` is the mean gradient and ``h`` the diagonal estimated by ``estimator``, both of the mean
    loss at ``f / temperature`` over the same samples; ``w`` is the dense weight also where an
    earlier round has pruned it. With ``train_batchnorm`` (for scores without ``h``) BatchNorm
    normalises with the statistics of each scoring batch (:func:`pai.objective.mean_gradient`).
    """

    saliency: Saliency
    temperature: float = 1.0
    estimator: Estimator | None = None
    train_batchnorm: bool = False
    uncut: ClassVar[str] = WHOLE_BATCHES

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        unknown = self._needs() - {"w", "g", "h"}
        if unknown:
            raise ValueError(
                f"saliency: its parameters must be among w, g and h, got {', '.join(unknown)}"
            )
        if "h" in self._needs() and self.estimator is None:
            raise ValueError("this saliency needs a curvature diagonal: give an estimator")
        if "h" in self._needs() and self.train_batchnorm:
            raise ValueError("train_batchnorm is for saliencies without a curvature diagonal")

    def _needs(self) -> set[str]:
        return set(inspect.signature(self.saliency).parameters)

    def check_outputs(self, shape: tuple[int, ...]) -> None:
        """Ask the estimator, if it has a limit (:meth:`pai.curvature.ExactGGN.check_outputs`)."""
        if isinstance(self.estimator, ExactGGN):
            self.estimator.check_outputs(shape)

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
        """Compute the factors the saliency names, then the saliency of each parameter.

        Scorers of one family share what is remembered (:mod:`pai.scorers.memo`).
        """
        needs = self._needs()
        factors: dict[str, Mapping[str, Tensor]] = {}
        if "w" in needs:
            factors["w"] = dense_weights(parameters)
        if "h" in needs:
            factors |= self._curvature(model, batches, parameters, loss_fn, generator)
        elif "g" in needs:
            factors |= self._gradient(model, batches, parameters, loss_fn)
        return {
            name: self.saliency(**{key: factors[key][name] for key in needs}) for name in parameters
        }

    def _curvature(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter],
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> dict[str, Named]:  # fmt: skip
        estimator = self.estimator
        assert estimator is not None

        def compute(*, with_gradient: bool) -> dict[str, Named]:
            estimate = estimator(
                model, batches, parameters,
                loss_fn=loss_fn, generator=generator, with_gradient=with_gradient,
            )  # fmt: skip
            gradient = {} if estimate.gradient is None else {"g": estimate.gradient}
            return {"h": estimate.diagonal, **gradient}

        if loss_fn is not None or not is_remembering():
            return compute(with_gradient="g" in self._needs())
        # with the gradient, so that the whole family finds what it needs
        return remembered(estimator, parameters, ("h", "g"), lambda: compute(with_gradient=True))

    def _gradient(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter],
        loss_fn: LossFn | None,
    ) -> dict[str, Named]:  # fmt: skip
        def compute() -> dict[str, Named]:
            gradient = mean_gradient(
                model, batches, parameters, loss_fn, self.temperature,
                train_batchnorm=self.train_batchnorm,
            )  # fmt: skip
            return {"g": gradient}

        if loss_fn is not None:
            return compute()
        what = MeanGradient(self.temperature, self.train_batchnorm)
        return remembered(what, parameters, ("g",), compute)


@dataclass(frozen=True)
class MeanGradient:
    """Names the mean gradient with its options for :func:`pai.scorers.memo.remembered`."""

    temperature: float
    train_batchnorm: bool


def gradient_scorer(
    saliency: Saliency, temperature: float = 1.0, train_batchnorm: bool = False
) -> FactorScorer:
    """Build a first-order scorer (``grad_norm``, ``snip``): one gradient pass."""
    return FactorScorer(saliency, temperature, train_batchnorm=train_batchnorm)


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
