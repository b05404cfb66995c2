"""Training before pruning: the references that pruning at initialization is compared with."""

from dataclasses import dataclass

from pai.masking.schedule import Exponential, OneShot, Schedule


@dataclass(frozen=True)
class TrainAndPrune:
    """``rounds`` times: train the network as pruned so far, score it, prune it, set weights back.

    After round k of n the density is ``rho^(k/n)``; a weight that was removed never returns. Then
    the run trains what is left, as always. Without training (``epochs=0``, one round) this is
    pruning at initialization. Known cases, with magnitude as the score:

    - one round, weights kept: magnitude pruning after training; the run's training is the
      fine-tuning (Han et al. 2015, arXiv 1506.02626). It starts its learning-rate schedule anew
      (learning-rate rewinding, Renda et al. 2020, arXiv 2003.02389).
    - several rounds, weights kept: the same, iteratively.
    - several rounds, ``rewind_step=0``: lottery tickets (Frankle and Carbin 2019, arXiv
      1803.03635).
    - several rounds, ``rewind_step=k``: late rewinding (Frankle et al. 2020, arXiv 1912.05671).
    - any score, ``prune_step=k``, weights kept: pruning after a short pre-training. With
      ``rewind_step=k`` too the training goes on from there instead of beginning anew (Frankle et
      al. 2021, arXiv 2009.08576).

    Lengths are in epochs, over which a training's learning-rate schedule extends; moments within a
    training are in optimizer steps from its start.

    Attributes:
        rounds: how often the network is trained and pruned.
        epochs: of the training in the first round; ``None``: as many as the run's training has.
        later_epochs: of the training in each later round; ``None``: as in the first.
        prune_step: the step at which each of these trainings is stopped and the network pruned;
            ``None``: at its end.
        rewind_step: the step of the first training that weights and BatchNorm statistics are set
            back to after each pruning; 0: those that the network started with. Later trainings
            then start at that step: data order, augmentation and learning rate are those of the
            first training, the optimizer's state is new. ``None``: the weights are kept, and each
            training has an order and augmentation of its own.
    """

    rounds: int = 1
    epochs: int | None = 0
    later_epochs: int | None = None
    prune_step: int | None = None
    rewind_step: int | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        for name, value in (("epochs", self.epochs), ("later_epochs", self.later_epochs)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if self.prune_step is not None and self.prune_step < 1:
            raise ValueError(f"prune_step must be at least 1, got {self.prune_step}")
        if self.rewind_step is not None and self.rewind_step < 0:
            raise ValueError(f"rewind_step must be 0 (the start) or more, got {self.rewind_step}")
        moments = (self.prune_step, self.rewind_step)
        if self.epochs == 0 and (self.rounds > 1 or moments != (None, None)):
            raise ValueError(
                "epochs is 0, so there is nothing to rewind and no training between rounds; give "
                "epochs, or use a schedule to prune in rounds without training"
            )

    @property
    def trains(self) -> bool:
        """Return whether anything is trained before the network is pruned."""
        return self.epochs != 0

    def sparsities(self, target: float) -> list[float]:
        """Return ``1 - (1 - target)^(k/n)`` for k = 1..n; the last is ``target`` itself."""
        return Exponential(self.rounds).sparsities(target)

    def epochs_of(self, number: int, training_epochs: int) -> int:
        """Return how many epochs the learning-rate schedule of round ``number`` (from 0) has."""
        first = training_epochs if self.epochs is None else self.epochs
        return first if number == 0 or self.later_epochs is None else self.later_epochs

    def steps_of(self, number: int, training_epochs: int, steps_per_epoch: int) -> range:
        """Return the optimizer steps that are taken in round ``number`` (from 0)."""
        whole = self.epochs_of(number, training_epochs) * steps_per_epoch
        first = self.rewind_step or 0 if number > 0 else 0
        return range(first, whole if self.prune_step is None else self.prune_step)

    def check(self, schedule: Schedule, training_epochs: int) -> None:
        """Raise ``ValueError`` if these rounds do not fit the run's schedule and training."""
        if self.rounds > 1 and not isinstance(schedule, OneShot):
            raise ValueError(
                f"rounds={self.rounds} is a schedule of its own, and each round prunes once; use "
                f"schedule=oneshot"
            )
        if self.trains and self.epochs_of(0, training_epochs) == 0:
            raise ValueError("epochs: null means training.epochs, and that is 0; give epochs")

    def check_steps(self, training_epochs: int, steps_per_epoch: int) -> None:
        """Raise ``ValueError`` if a step is beyond the end of a training that has to reach it."""
        if not self.trains:
            return
        lengths = {self.epochs_of(number, training_epochs) for number in range(self.rounds)}
        pruning = min(lengths) * steps_per_epoch
        if self.prune_step is not None and self.prune_step > pruning:
            raise ValueError(
                f"prune_step={self.prune_step} is beyond the end of a training before pruning: "
                f"{_length(min(lengths), steps_per_epoch)}"
            )
        pruning = self.prune_step or pruning
        rewind = self.rewind_step or 0
        if rewind > pruning or (self.rounds > 1 and rewind == pruning):
            raise ValueError(
                f"rewind_step={rewind} is not before the pruning after {pruning} steps (an epoch "
                f"has {steps_per_epoch})"
            )
        if rewind > 0 and 0 < training_epochs * steps_per_epoch <= rewind:
            raise ValueError(
                f"rewind_step={rewind} is not before the end of the run's training: "
                f"{_length(training_epochs, steps_per_epoch)}"
            )


def _length(epochs: int, steps_per_epoch: int) -> str:
    return f"{epochs} epochs of {steps_per_epoch} steps, {epochs * steps_per_epoch} in all"
