"""Builds the simulated device (``simulated_device.cpp``); torch knows it as ``simulated:0``.

Needs a C++ compiler and ninja. It shows where a GPU would find a tensor in the wrong place; it says
nothing about the numbers, the memory or the speed of a GPU.
"""

import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.cpp_extension import load

_NAME = "simulated"


def simulated_device(build_directory: Path) -> torch.device:
    """Build the device in a folder and return it; once in a process."""
    source = Path(__file__).parent / "simulated_device.cpp"
    load(
        "simulated_device", [str(source)], extra_cflags=["-O1"],
        build_directory=str(build_directory), is_python_module=False,
    )  # fmt: skip
    torch.utils.rename_privateuse1_backend(_NAME)
    torch._register_device_module(_NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    nn.Module.to = _moved  # type: ignore[assignment, method-assign]
    torch.UntypedStorage.cpu = _storage(torch.UntypedStorage.cpu, Tensor.cpu)  # type: ignore[method-assign]
    torch.UntypedStorage.clone = _storage(torch.UntypedStorage.clone, Tensor.clone)  # type: ignore[method-assign]
    return torch.device(f"{_NAME}:0")


def _module() -> types.ModuleType:
    """Return what torch looks for at ``torch.simulated``, as at ``torch.cuda``."""
    module: Any = types.ModuleType(_NAME)
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, device=None: None
    module.synchronize = lambda device=None: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    found: types.ModuleType = module
    return found


_usual = nn.Module.to


def _moved(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Move a network there without separating what its modules share, as for a GPU."""
    place = args[0] if args else kwargs.get("device")
    if not isinstance(place, str | torch.device) or torch.device(place).type != _NAME:
        return _usual(self, *args, **kwargs)
    moved: dict[int, Tensor] = {}
    for module in self.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and id(value) not in moved:
                    there: Tensor = value.detach().to(place)
                    if isinstance(value, nn.Parameter):
                        there = nn.Parameter(there, value.requires_grad)
                    moved[id(value)] = there
                held[name] = None if value is None else moved[id(value)]  # type: ignore[assignment]
    return self


def _storage(usual: Any, how: Any) -> Any:
    """Copy storages of the device through tensors: torch does not know how."""

    def copied(self: torch.UntypedStorage) -> torch.UntypedStorage:
        if self.device.type != _NAME:
            found: torch.UntypedStorage = usual(self)
            return found
        count = self.nbytes()
        empty = torch.empty(0, dtype=torch.uint8, device=_NAME)
        storage: torch.UntypedStorage = how(empty.set_(self, 0, (count,), (1,))).untyped_storage()
        return storage

    return copied
