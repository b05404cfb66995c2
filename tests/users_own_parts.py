"""What a user might name in YAML files of their own; ``test_components.py`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from pai.masking.schedule import Schedule

CALLS: list[int] = []
NOT_CALLABLE = 3


class Own:
    """What somebody lets Hydra call back."""


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


def small_model(*, num_classes: int, in_channels: int, width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )  # fmt: skip


def sized_model(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    pixels = in_channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 3), nn.Linear(3, num_classes))


class SizedModel(nn.Sequential):
    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__(sized_model(
            num_classes=num_classes, in_channels=in_channels, image_size=image_size
        ))  # fmt: skip


def any_model(**given: int) -> nn.Module:
    CALLS.append(len(given))
    return small_model(num_classes=given["num_classes"], in_channels=given["in_channels"])


def blind_model(*, num_classes: int) -> nn.Module:
    return nn.Linear(1, num_classes)


def silent_model(*, num_classes: int, in_channels: int) -> nn.Module:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    return Refusing()


def demanding_model(*, num_classes: int, in_channels: int, hidden: int) -> nn.Module:
    raise AssertionError("is not called without hidden")


def no_model(*, num_classes: int, in_channels: int) -> object:
    return lambda x: x


def failing_model(*, num_classes: int, in_channels: int) -> nn.Module:
    raise NameError("name 'hidden' is not defined")


def stumbling_model(*, num_classes: int, in_channels: int) -> nn.Module:
    class Stumbling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("features")

    return Stumbling()


def unreadable(number: NoSuchType) -> None:  # type: ignore[name-defined]  # noqa: F821
    del number


class Overshooting(Schedule):
    """Prunes further than it was asked to."""

    def sparsities(self, target: float) -> list[float]:
        return [target / 2, (1 + target) / 2]


def encoder(*, vocab_size: int, context_length: int) -> nn.Module:
    """Attends to all tokens, as a BERT does."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(vocab_size, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
            self.head = nn.Linear(8, vocab_size)

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.head(self.layer(self.embedding(tokens)))
            return logits.transpose(1, 2)

    return Encoder()
