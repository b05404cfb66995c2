"""How long the parts of a run take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds the seconds spent in named blocks to ``seconds``, once ``device`` has caught up."""

    def __init__(self, seconds: dict[str, float], device: torch.device) -> None:
        self.seconds = seconds
        self._device = device
        self._since: dict[str, float] = {}

    @contextmanager
    def timed(self, key: str) -> Iterator[None]:
        """Time the block as ``key``."""
        self._since[key] = time.perf_counter()
        try:
            yield
        finally:
            self.tick()
            del self._since[key]

    def add(self, **seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        for key, value in seconds.items():
            self.seconds[key] = self.seconds.get(key, 0.0) + value

    def tick(self) -> None:
        """Bring ``seconds`` up to date within the blocks, for a record that may be the last."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        for key, since in self._since.items():
            self.seconds[key] = self.seconds.get(key, 0.0) + now - since
            self._since[key] = now
