"""What a user might name in YAML files of their own; ``test_components.py`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

CALLS: list[int] = []
NOT_CALLABLE = 3


def record(
    *, number: int = 0, scale: float = 1.0, on: bool = False, name: str = "x"
) -> dict[str, Any]:
    CALLS.append(number)
    return {"number": number, "scale": scale, "on": on, "name": name}


@dataclass(frozen=True)
class Range:
    low: int
    high: int
    kind: Literal["open", "closed"] = "open"

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, got {self.low} > {self.high}")


class Holder:
    def __init__(
        self, inner: Range, items: Sequence[Any] = (), extra: dict[str, Any] | None = None
    ) -> None:
        self.inner, self.items, self.extra = inner, items, extra


def free(**options: object) -> dict[str, object]:
    return options


def awkward(schema: str = "a", copy: int = 1) -> tuple[str, int]:
    return schema, copy


def broken() -> None:
    raise TypeError("a fault of its own")
