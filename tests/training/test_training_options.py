from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import CONSTANT, NESTEROV

from pai.errors import ConfigError
from pai.training.lr_schedules import Cosine, Steps
from pai.training.options import Training

GOOD: dict[str, Any] = {
    "epochs": 0, "batch_size": 2, "label_smoothing": 0.0, "mixup_alpha": 0.0,
    "clip_grad_norm": 1.0, "precision": "bfloat16", "evaluation_batch_size": 1,
    "optimizer": NESTEROV, "lr_schedule": CONSTANT,
}  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", -1), ("batch_size", 1), ("batch_size", 0), ("label_smoothing", -0.1),
        ("label_smoothing", 1.0), ("label_smoothing", float("nan")), ("mixup_alpha", -0.1),
        ("mixup_alpha", float("nan")), ("mixup_alpha", float("inf")), ("clip_grad_norm", 0.0),
        ("clip_grad_norm", float("nan")), ("precision", "float16"), ("evaluation_batch_size", 0),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    Training(**GOOD)
    with pytest.raises(ValueError, match=f"^{option} must"):
        Training(**GOOD | {option: value})


def test_compiling_on_a_cpu_without_a_compiler_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    options = Training(**GOOD, compile=True)
    options.check(torch.device("cuda"))
    Training(**GOOD).check(torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"^training\.compile: .*'g\+\+'"):
        options.check(torch.device("cpu"))
    compiler = tmp_path / "mycc"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", "mycc")
    options.check(torch.device("cpu"))


@pytest.mark.parametrize(
    ("epochs", "warmup", "remarks"), [(0, 1.0, 0), (1, 0.5, 0), (1, 1.0, 1), (15, 100.0, 1)]
)
def test_a_warmup_as_long_as_the_training_is_remarked(
    epochs: int, warmup: float, remarks: int
) -> None:
    options = Training(**GOOD | {"epochs": epochs, "lr_schedule": Cosine(warmup_epochs=warmup)})
    assert len(options.remarks()) == remarks
    for remark in options.remarks():
        assert f"warmup_epochs={warmup:g} of training.epochs={epochs}" in remark
    assert Training(**GOOD | {"epochs": 3}).remarks() == []


@pytest.mark.parametrize(
    ("epochs", "remarks"), [(0, 0), (1, 1), (60, 1), (61, 1), (120, 1), (121, 0)]
)
def test_a_milestone_that_no_epoch_reaches_is_remarked(epochs: int, remarks: int) -> None:
    options = Training(**GOOD | {"epochs": epochs, "lr_schedule": Steps((60, 120))})
    assert (
        options.remarks()
        == [
            f"the learning rate does not fall at every milestone: training.lr_schedule.milestones="
            f"[60, 120] of training.epochs={epochs}"
        ][:remarks]
    )
