"""Numbers that are NaN or infinite: found, and traced to the layer they come from."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pai.errors import RunError


def check_finite(what: str, tensors: Mapping[str, Tensor], cause: Callable[[], str]) -> None:
    """Raise :class:`RunError` if a tensor holds NaN or infinity.

    Args:
        what: the values are of their names, in the plural (``"scores"``).
        tensors: by name; the first bad one is named.
        cause: called for the end of the message.
    """
    for name, value in tensors.items():
        good = torch.isfinite(value)
        if not bool(good.all()):
            bad = int((~good).sum())
            raise RunError(
                f"{bad} of {value.numel()} {what} of {name!r} are NaN or infinite{cause()}"
            )


@torch.no_grad()
def source_of(model: nn.Module, inputs: Tensor, run: Callable[[Tensor], Any] | None = None) -> str:
    """Return ``": "`` and where NaN or infinity enters, or an empty string if it is not seen.

    First the inputs are looked at, then the parameters, then the outputs of layers in one forward
    pass in the model's own mode. The model is bit-identical afterwards.

    Args:
        model: any module.
        inputs: a batch that it takes.
        run: how the model is run; by default it is called.
    """
    if not is_finite(inputs):
        return ": the inputs hold NaN or infinity"
    weights = dict(model.named_parameters())
    bad = [name for name, value in weights.items() if not is_finite(value)]
    if bad:
        which = repr(bad[0]) if len(bad) == 1 else f"{bad[0]!r} to {bad[-1]!r}"
        return f": {len(bad)} of {len(weights)} weight tensors hold NaN or infinity, {which}"
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not is_finite(output):
            found.append(name)

    layers = [(name, layer) for name, layer in model.named_modules() if name]
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output, name=name: look(name, output))
        for name, layer in layers
    ]
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        output = (run or model)(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, value in saved:
            buffer.copy_(value)
    if found:
        return f": the first layer whose output is not finite is {found[0]!r}"
    return "" if is_finite(output) else ": the output of the network is not finite"


def first_source(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> str:
    """Return what :func:`source_of` says of the first batch for which it says something."""
    return next(filter(None, (source_of(model, inputs) for inputs, _ in batches)), "")


def is_finite(value: Tensor) -> bool:
    """Return whether there is neither NaN nor infinity in ``value``."""
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
