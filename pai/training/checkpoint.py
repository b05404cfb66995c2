"""Checkpoints: written by rename, read without unpickling objects.

A new checkpoint is written completely and flushed to disk under a temporary name and then renamed
over the old one, which the file system does as one action: at every moment there is exactly one
whole checkpoint, the old or the new. Keeping the old one in addition would only help against a disk
that damages what it has stored; that is reported, not repaired.
"""

import io
from pathlib import Path
from typing import Any

import torch

from pai.errors import RunError
from pai.records import write_bytes_atomically


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state saved at ``path``, its tensors on the CPU, or ``None`` if there is none.

    Raises:
        RunError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise nearly anything
        raise RunError(
            f"cannot read checkpoint {path}: {error}; remove it to start over"
        ) from error
    return state
