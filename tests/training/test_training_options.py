from typing import Any

import pytest
from training_cases import CONSTANT, NESTEROV

from pai.training.options import Training


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", -1), ("batch_size", 1), ("batch_size", 0), ("label_smoothing", -0.1),
        ("label_smoothing", 1.0), ("label_smoothing", float("nan")),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    good: dict[str, Any] = {"epochs": 0, "batch_size": 2, "label_smoothing": 0.0}
    Training(**good, optimizer=NESTEROV, lr_schedule=CONSTANT)
    with pytest.raises(ValueError, match=option):
        Training(**good | {option: value}, optimizer=NESTEROV, lr_schedule=CONSTANT)
