"""The kinds of metrics: which way is better, and how their values are shown.

A metric of the record is named by what it was measured on and its kind: ``best_val_test_loss``.
"""

from dataclasses import dataclass

from pai.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """A kind of metric.

    Attributes:
        word: the last part of the names of its metrics.
        lower_is_better: whether the lowest value is the best one.
        scale: shown is the value times this.
        digits: how many are shown after the point.
    """

    word: str
    lower_is_better: bool
    scale: float
    digits: int

    def name(self, part: str) -> str:
        """Return the name of the metric that is measured on ``part``."""
        return f"{part}_{self.word}"


ACCURACY = Kind("accuracy", lower_is_better=False, scale=100.0, digits=1)  # in percent
LOSS = Kind("loss", lower_is_better=True, scale=1.0, digits=3)
PERPLEXITY = Kind("perplexity", lower_is_better=True, scale=1.0, digits=3)
KINDS = (ACCURACY, LOSS, PERPLEXITY)


def kind_of(metric: str) -> Kind:
    """Return the kind of a metric of the record.

    Raises:
        ConfigError: it is of none, so that nothing says which way is better.

    Example:
        >>> kind_of("best_val_perplexity").lower_is_better
        True
    """
    for kind in KINDS:
        if metric.rpartition("_")[2] == kind.word:
            return kind
    words = ", ".join(kind.word for kind in KINDS)
    raise ConfigError(
        f"metric: {metric!r} is of no kind of which it is known whether high or low is better "
        f"({words})"
    )
