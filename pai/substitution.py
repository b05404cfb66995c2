"""A forward pass with other parameters and buffers than the model's own."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor) -> Any:
    """Return ``model(inputs)`` where tensors of the given names are replaced by others.

    A tensor that several modules hold is replaced in all of them, and a module that has several
    names counts once: ``functional_call`` by itself replaces what is in such a module twice, and
    puts the substitute back instead of the parameter.

    Raises:
        ValueError: the model has no tensor of a name.
    """
    own = {**dict(model.named_parameters(remove_duplicate=False)),
           **dict(model.named_buffers(remove_duplicate=False))}  # fmt: skip
    if strange := [name for name in state if name not in own]:
        raise ValueError(f"the model has no parameter or buffer {strange[0]!r}")
    others = {id(own[name]): value for name, value in state.items()}
    places = {place: others[id(tensor)] for place, tensor in _places(model) if id(tensor) in others}
    return functional_call(model, places, (inputs,), tie_weights=False)


def _places(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each attribute that holds a parameter or a buffer, once per module."""
    for prefix, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{prefix}.{name}" if prefix else name, tensor
