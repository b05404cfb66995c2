"""Masks: applying, saving, hashing and describing them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pai.masking.effective import Connectivity, Paths
from pai.masking.moves import NotDefinedError
from pai.masking.ranking import Mask, check_bits
from pai.records import write_bytes_atomically


def apply_mask(model: nn.Module, mask: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of ``model`` to exactly zero, in place.

    Raises:
        ValueError: a name is not a parameter of the model, a shape differs, or a tensor is not
            Boolean.
    """
    parameters = dict(model.named_parameters())
    for name, keep in mask.items():
        if name not in parameters:
            raise ValueError(f"mask: the model has no parameter {name!r}")
        check_bits(keep, name, parameters[name].shape, "mask")
    with torch.no_grad():
        for name, keep in mask.items():
            parameters[name].masked_fill_(~keep.to(parameters[name].device), 0)


def dense_mask(parameters: Mapping[str, Tensor]) -> Mask:
    """Return the mask that keeps everything."""
    return {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}


def save_mask(mask: Mapping[str, Tensor], path: str | Path) -> None:
    """Write ``mask`` as safetensors, by rename."""
    write_bytes_atomically(
        Path(path), save({name: keep.cpu().contiguous() for name, keep in mask.items()})
    )


def load_mask(path: str | Path) -> Mask:
    """Read a mask written by :func:`save_mask`.

    Raises:
        ValueError: the file is not safetensors, or holds something else than Booleans.
        OSError: there is no such file.
    """
    try:
        mask = dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    for name, keep in mask.items():
        if keep.dtype != torch.bool:
            raise ValueError(f"{path} is no mask: {name!r} is not Boolean")
    return mask


def mask_sha256(mask: Mapping[str, Tensor]) -> str:
    """Return a hash of names, shapes and bits, independent of device and of the dict's order."""
    digest = hashlib.sha256()
    for name in sorted(mask):
        keep = mask[name].cpu()
        digest.update(f"{name}{tuple(keep.shape)}".encode())
        digest.update(keep.to(torch.uint8).contiguous().numpy().tobytes())
    return digest.hexdigest()


def mask_report(model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor) -> dict[str, Any]:
    """Describe ``mask`` for the record.

    ``sparsity`` counts prunable weights, ``sparsity_all_parameters`` all parameters of the model.
    ``effective_sparsity`` counts a kept weight only if it lies on a path from input to output
    (:mod:`pai.masking.effective`; ``None`` where that is not defined, and ``effective_undefined``
    says why). ``collapsed_layers`` names the layers that lost every weight, ``dead_layers`` those
    that kept some, none of them effective. ``cut_at`` names the layer that cuts the network, if
    no output depends on the input.

    Args:
        model: the model the mask is for; not changed.
        mask: by parameter name.
        inputs: a batch, for its shape.
    """
    paths, undefined = _paths(model, mask, inputs)
    effective = None if paths is None else paths.effective
    layers: list[dict[str, Any]] = []
    for name, keep in mask.items():
        total, kept = keep.numel(), int(keep.sum())
        layers.append(
            {
                "name": name,
                "shape": list(keep.shape),
                "total": total,
                "kept": kept,
                "density": kept / total if total else 1.0,  # nothing to lose, nothing lost
                "effective_kept": None if effective is None else int(effective[name].sum()),
            }
        )
    prunable = sum(layer["total"] for layer in layers)
    kept = sum(layer["kept"] for layer in layers)
    everything = sum(p.numel() for p in model.parameters())
    on_path = None if effective is None else sum(layer["effective_kept"] for layer in layers)
    return {
        "sparsity": 1 - kept / prunable,
        "sparsity_all_parameters": (prunable - kept) / everything,
        "kept": kept,
        "prunable": prunable,
        "all_parameters": everything,
        "effective_sparsity": None if on_path is None else 1 - on_path / prunable,
        "effective_undefined": undefined,
        "collapsed_layers": [
            layer["name"] for layer in layers if layer["total"] > layer["kept"] == 0
        ],
        "dead_layers": [
            layer["name"] for layer in layers if layer["kept"] and layer["effective_kept"] == 0
        ],
        "cut_at": None if paths is None else paths.cut_at,
        "sha256": mask_sha256(mask),
        "layers": layers,
    }


def _paths(
    model: nn.Module, mask: Mapping[str, Tensor], inputs: Tensor
) -> tuple[Paths | None, str | None]:
    try:
        return Connectivity(model, inputs).paths(mask), None
    except NotDefinedError as error:
        return None, str(error)
