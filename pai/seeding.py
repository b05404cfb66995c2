"""One random stream per purpose, all derived from the run's seed.

Streams are independent of one another: drawing one more probe does not reshuffle the data, and
a resumed run needs no saved generator state because every epoch has a stream of its own.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch

from pai.distributed import launched


def seed_of(config: Mapping[str, Any], part: Literal["initialization", "data", "probes"]) -> int:
    """Return the seed of a part of a run: ``seeds.<part>`` of the configuration, else ``seed``.

    ``initialization``: the weights. ``data``: the scoring samples, the orders of the warmup and of
    training, augmentation, dropout. ``probes``: what a scorer draws (probes, labels, random
    scores).
    """
    own = (config.get("seeds") or {}).get(part)
    return int(config["seed"] if own is None else own)


def derive_seed(seed: int, purpose: str) -> int:
    """Return a 63-bit seed for ``purpose`` (say ``"order/3"``), from SHA-256 of both arguments."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on ``device`` for one purpose of one run."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose))


@contextmanager
def global_seed(seed: int, purpose: str) -> Iterator[None]:
    """Seed torch's global generators inside the block (for ``nn.init``, dropout), restore after.

    One of several processes leaves the GPUs of the others alone.
    """
    gpus = [torch.cuda.current_device()] if launched() > 1 and torch.cuda.is_available() else None
    with torch.random.fork_rng(range(torch.cuda.device_count()) if gpus is None else gpus):
        torch.manual_seed(derive_seed(seed, purpose))
        yield
