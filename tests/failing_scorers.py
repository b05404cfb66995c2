"""A scorer that ends its process, or its run, in one of several ways."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pai.objective import Named
from pai.scorers.magnitude import Magnitude


def _once(action: Callable[[], None]) -> None:
    """Do it the first time only, over all processes that start in this folder."""
    flag = Path("done-once")
    if not flag.exists():
        flag.touch()
        action()


def _fail() -> None:
    raise RuntimeError("deliberate")


def _stop_in_exec() -> None:
    exec("os.kill(os.getpid(), signal.SIGUSR2)\nfor _ in range(1000): pass")


_WAYS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "preempt_once": lambda: _once(lambda: os.kill(os.getpid(), signal.SIGUSR2)),
    "wait": lambda: time.sleep(60),
    "interrupt": lambda: os.killpg(os.getpgid(0), signal.SIGINT),
    "stop_in_exec": _stop_in_exec,
    "raise": _fail,
}


@dataclass(frozen=True)
class Ending(Magnitude):
    """Magnitude, unless ``how`` is one of the ways to end badly, with any number behind it."""

    how: str = "well"

    def score(self, *arguments: Any, **options: Any) -> Named:
        _WAYS.get(self.how.rstrip("0123456789"), lambda: None)()
        return super().score(*arguments, **options)
