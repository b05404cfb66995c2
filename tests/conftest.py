"""Test settings: this folder importable (``cases``, ``reference``), one thread, no W&B login."""

import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the networks here are tiny
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
