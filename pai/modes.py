"""Modules that act on a change of mode: in eval mode they merge weights or remember tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_TORCHS_OWN = frozenset(nn.Module().__dict__)
_Attributes = dict[nn.Module, dict[str, tuple[Any, Any]]]


class OwnModes:
    """The modules of a model whose ``train()`` is not torch's, and what they hold.

    LoRA layers add their product to the weight in eval mode; timm's LeViT and others keep biases
    that they have looked up once. What was kept from one pass has no graph in the next, and may be
    of other weights.
    """

    def __init__(self, model: nn.Module) -> None:
        """Note the attributes of these modules; ``weights`` are copies of their parameters."""
        self._model = model
        self._modules = [
            module
            for module in model.modules()
            if type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval
        ]
        self._before = self._attributes()
        self.weights: dict[nn.Parameter, Tensor] = {
            parameter: parameter.detach().clone()
            for module in self._modules
            for parameter in module.parameters(recurse=False)
        }

    @contextmanager
    def entered_anew(self) -> Iterator[None]:
        """Let the model be in eval mode as if it came from training, before every forward pass.

        Afterwards the modules have the attributes from before; flags and weights are the caller's
        to restore.
        """
        if not self._modules:
            self._model.eval()
            yield
            return
        try:
            self._model.train()
            self._model.eval()
            fresh = self._attributes()
            hook = self._model.register_forward_pre_hook(lambda *_: _restore(fresh))
            try:
                yield
            finally:
                hook.remove()
        finally:
            _restore(self._before)

    def _attributes(self) -> _Attributes:
        """Return by name each attribute and, of a container, a copy of what is in it."""
        return {
            module: {
                name: (value, _copy(value))
                for name, value in module.__dict__.items()
                if name not in _TORCHS_OWN
            }
            for module in self._modules
        }


def _copy(value: Any) -> Any:
    return value.copy() if type(value) in (dict, list, set) else value


def _restore(attributes: _Attributes) -> None:
    for module, values in attributes.items():
        for name in set(module.__dict__) - _TORCHS_OWN - set(values):
            del module.__dict__[name]
        for name, (value, inside) in values.items():
            if type(value) is list:
                value[:] = inside
            elif type(value) in (dict, set):
                value.clear()
                value.update(inside)
            module.__dict__[name] = value
