"""A number with the interval it is in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % bootstrap interval over seeds."""

    mean: float
    low: float
    high: float

    def shown(self, digits: int, to: str) -> str:
        """Return ``0.123 (0.100-0.150)``; ``to`` is what stands between the ends."""
        mean, low, high = (f"{value:.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean} ({low}{to}{high})"
