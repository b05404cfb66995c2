"""What all scorers share: the call, the untouched model, the check that scores are numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pai.errors import ConfigError
from pai.finite import check_finite, first_source
from pai.memory import within_memory
from pai.objective import Batches, LossFn, Named, check_batches
from pai.prunable import check_scores, chosen_or_prunable
from pai.scorers.memo import remembered
from pai.state import scoring_mode


class Scorer(ABC):
    """Scores every prunable weight; subclasses implement :meth:`score`."""

    keeps_everything: ClassVar[bool] = False
    """True for the dense reference alone: no mask is selected from its scores."""

    takes_whole_numbers: ClassVar[bool] = True
    """False if the method is defined for real inputs only, not for numbers of tokens and nodes."""

    remembers: ClassVar[bool] = False
    """True if scores are worth keeping in the cache, and follow from the class's source and plain
    options."""

    uncut: ClassVar[str] = "this method works on one input, so there are no pieces to make smaller"
    """Said when memory runs out and no batch was cut into pieces: why, and what takes less."""

    def __call__(
        self,
        model: nn.Module,
        batches: Batches,
        *,
        loss_fn: LossFn | None = None,
        generator: torch.Generator | None = None,
        parameters: Mapping[str, nn.Parameter] | None = None,
    ) -> Named:
        """Return scores by parameter name, in the parameter's shape; high = keep.

        The model is in eval mode while it is scored and bit-identical afterwards.

        Args:
            model: any module, on any device.
            batches: re-iterable of ``(inputs, targets)`` on the model's device.
            loss_fn: from (outputs, targets) to a scalar mean over samples; default cross-entropy.
            generator: makes stochastic scorers reproducible; default torch's global one.
            parameters: what to score, by name; default :func:`pai.prunable_parameters`.

        Raises:
            RunError: a score is NaN or infinite; the parameter is named. Or memory does not suffice
                for a single sample, or for what the method never cuts.
            ValueError: ``batches`` is empty, can be read only once, has other things in it than
                pairs of tensors or does not fit the method; there is nothing to score, or it is
                not the model's; weights are complex; or there are no scores of a parameter, or
                not in its shape.
        """
        batches = check_batches(batches)
        parameters = chosen_or_prunable(model, parameters)
        if not self.takes_whole_numbers:
            self.check_inputs(next((inputs for inputs, _ in batches), None))

        def score() -> Named:
            return self.score(model, batches, parameters, loss_fn=loss_fn, generator=generator)

        def compute() -> dict[str, Named]:
            found = within_memory(score, model, generator, self.uncut)
            check_scores(found, parameters)
            return {"scores": {name: value.detach() for name, value in found.items()}}

        with scoring_mode(model):
            if self.remembers and loss_fn is None:
                scores = remembered(self, parameters, ("scores",), compute)["scores"]
            else:
                scores = compute()["scores"]
        check_finite("scores", scores, lambda: self._source(model, batches))
        return scores

    def _source(self, model: nn.Module, batches: Batches) -> str:
        """Say where scores that are no numbers come from."""
        with scoring_mode(model):
            return f" ({type(self).__name__}){first_source(model, batches)}"

    def check_outputs(self, shape: tuple[int, ...]) -> None:  # noqa: B027  (most have no limit)
        """Raise ``ValueError`` if logits of ``shape`` are too many for this method; cheap."""

    def check_network(  # noqa: B027  (most take any)
        self, build: Callable[[], nn.Module], inputs: Tensor
    ) -> None:
        """Raise :class:`ConfigError` if the method is not defined for a network.

        Args:
            build: makes the network, in eval mode on the CPU.
            inputs: empty samples that it takes.
        """

    def describe(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter]
    ) -> dict[str, Any]:
        """Return what the record should say about these scores of this model; by default nothing.

        The model is bit-identical afterwards.
        """
        return {}

    def check_inputs(self, inputs: Tensor | None) -> None:
        """Raise :class:`ConfigError` if the method is not defined for such inputs."""
        whole = inputs is not None and not inputs.is_floating_point()
        if whole and not self.takes_whole_numbers:
            raise ConfigError(
                f"scorer: {type(self).__name__} is defined for inputs that are real numbers, and "
                f"those of this task are whole numbers (of tokens or nodes); use another scorer"
            )

    @abstractmethod
    def score(
        self,
        model: nn.Module,
        batches: Batches,
        parameters: Mapping[str, nn.Parameter],
        *,
        loss_fn: LossFn | None,
        generator: torch.Generator | None,
    ) -> Named:
        """Return the scores of ``parameters``; called in :func:`pai.state.scoring_mode`."""
