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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--simulated-device", action="store_true",
        help="run tests for GPUs on a device that is simulated (needs a C++ compiler and ninja)",
    )  # fmt: skip


@pytest.fixture(scope="session")
def accelerator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> torch.device:
    """The GPU, or what stands for it: a device that is not the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if not request.config.getoption("--simulated-device"):
        pytest.skip("no CUDA device")
    from simulated_device import simulated_device

    return simulated_device(tmp_path_factory.mktemp("simulated_device"))


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
