"""BatchNorm layers that share their statistics among processes."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def check_batchnorms(model: nn.Module) -> None:
    """Raise ``ValueError`` if a BatchNorm layer does something of its own beside it.

    Its synchronised substitute would not do that: it would be another network.
    """
    from timm.layers.norm_act import BatchNormAct2d  # timm takes seconds to import

    known = {_BatchNorm.forward, nn.SyncBatchNorm.forward, BatchNormAct2d.forward}
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and type(layer).forward not in known:
            raise ValueError(
                f"{name!r} is a {type(layer).__name__} with a forward of "
                f"its own, which the synchronised layer has not; set it to false"
            )


def synchronise_batchnorms(model: nn.Module) -> None:
    """Put synchronised layers with the same parameters and buffers into their places.

    That of timm's ``BatchNormAct2d`` has its activation as well.
    """
    from timm.layers.norm_act import convert_sync_batchnorm

    convert_sync_batchnorm(model)
