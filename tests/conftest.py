"""Test settings: this folder importable (``cases``, ``reference``), one thread, no W&B login.

Decoded images are cached in a temporary folder, not in the user's.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the networks here are tiny
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
