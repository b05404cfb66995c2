"""A pruned network as a file without its zeros, and back, bit for bit but for the sign of zeros.

A safetensors file. Each tensor of the ``state_dict`` is stored as whichever is smallest:

- ``NAME``: as it is;
- ``NAME#bitmap`` and ``NAME#values``: one bit per entry (row-major, highest bit first), and the
  entries whose bit is set;
- ``NAME#index`` and ``NAME#values``: the positions (int32, row-major) of those entries, cheaper
  below one entry in 32.

Left out are the entries that are zero, whatever their sign: a negative weight times a mask is -0.
Shapes of sparse tensors are in the file's metadata.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pai.records import write_bytes_atomically

_LAYOUTS = ("#bitmap", "#index", "#values")
_SIGNED_ZEROS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save_sparse(model: nn.Module, path: str | Path) -> int:
    """Write all parameters and buffers of ``model``, without zeros, and return the bytes.

    What is read again is the same bit for bit, but a zero may have lost its minus sign.

    Raises:
        ValueError: a tensor has a type that cannot be looked at bit by bit (complex numbers).
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, value in model.state_dict().items():
        parts = _packed(name, value.detach().cpu().contiguous())
        tensors |= {name + suffix: part.clone() for suffix, part in parts.items()}
        if len(parts) > 1:
            shapes[name] = list(value.shape)
    content = save(tensors, metadata={"format": "pai-sparse-1", "shapes": json.dumps(shapes)})
    write_bytes_atomically(Path(path), content)
    return len(content)


def load_sparse(model: nn.Module, path: str | Path) -> None:
    """Set all parameters and buffers of ``model`` to what :func:`save_sparse` has written.

    Raises:
        ValueError: the file is not one of these, or not for this model: a name is missing or
            unknown, a shape or type differs. The model is unchanged then.
        OSError: there is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if told.get("format") != "pai-sparse-1":
        raise ValueError(f"{path} was not written by save_sparse")
    shapes = json.loads(told["shapes"])
    wanted = model.state_dict()
    found = {name: v for name, v in stored.items() if not name.endswith(_LAYOUTS)}
    found |= {name: _unpacked(name, stored, shape) for name, shape in shapes.items()}
    for name in sorted({*wanted, *found}):
        if name not in found or name not in wanted:
            where = "the file" if name not in found else "the model"
            raise ValueError(f"{path} does not fit the model: {where} has no {name!r}")
        for what in ("shape", "dtype"):
            ours, theirs = getattr(wanted[name], what), getattr(found[name], what)
            if ours != theirs:
                raise ValueError(
                    f"{path} does not fit the model: {name!r} has {what} {theirs} in the file and "
                    f"{ours} in the model"
                )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])


def _packed(name: str, value: Tensor) -> dict[str, Tensor]:
    if value.is_complex() or value.element_size() not in _INTEGERS:
        raise ValueError(f"{name!r}: tensors of type {value.dtype} cannot be stored sparsely")
    flat, width = value.reshape(-1), value.element_size()
    kept = flat != 0 if value.dtype in _SIGNED_ZEROS else flat.view(_INTEGERS[width]) != 0
    count = int(kept.sum())
    sizes = {"#bitmap": math.ceil(len(flat) / 8) + count * width, "#index": count * (4 + width)}
    layout = min(sizes, key=lambda key: sizes[key])
    if sizes[layout] >= len(flat) * width or len(flat) >= 2**31:
        return {"": value}
    if layout == "#index":
        return {layout: torch.nonzero(kept).flatten().int(), "#values": flat[kept]}
    return {layout: torch.from_numpy(np.packbits(kept.numpy())), "#values": flat[kept]}


def _unpacked(name: str, stored: dict[str, Tensor], shape: list[int]) -> Tensor:
    values = stored[name + "#values"]
    flat = torch.zeros(math.prod(shape), dtype=values.dtype)
    if name + "#index" in stored:
        flat[stored[name + "#index"].long()] = values
    else:
        bits = np.unpackbits(stored[name + "#bitmap"].numpy(), count=len(flat))
        flat[torch.from_numpy(bits).bool()] = values
    return flat.reshape(shape)
