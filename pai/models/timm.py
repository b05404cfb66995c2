"""Any architecture of timm by its name, with fresh weights."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

_SET_BY_THE_RUN = ("num_classes", "in_chans", "img_size")
_TRAINED_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


def timm_model(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    name: str,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Build ``timm.create_model(name, pretrained=False)`` for the data set at hand.

    Architectures whose weights depend on the image size (``fixed_input_size`` in their timm
    configuration: most transformers and MLP mixers) are built for ``image_size``; the others take
    any size. Importing timm takes seconds, so it is imported here.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        image_size: side of the square images in pixels.
        name: an architecture (``timm.list_models()``), without a tag of trained weights.
        options: further keywords of ``timm.create_model`` (``{"drop_path_rate": 0.1}``).

    Raises:
        ValueError: there is no such architecture, it does not take an option or images of this
            size, or an option would set what the run sets or load trained weights.
    """
    options = options or {}
    _check_options(options)
    import timm

    known = timm.list_models()
    if name not in known:
        close = difflib.get_close_matches(name.partition(".")[0], known, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"name must be an architecture of timm {timm.__version__}, without a tag of trained "
            f"weights, got {name!r}{hint}"
        )
    arguments = dict(options)
    published = timm.get_pretrained_cfg(name)
    if published is not None and published.fixed_input_size:
        arguments["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **arguments
        )
    except (TypeError, AssertionError, ArithmeticError, LookupError) as error:
        raise ValueError(
            f"name {name!r}: timm cannot build it for images of {image_size}x{image_size} pixels "
            f"with options {options}: {str(error) or type(error).__name__}"
        ) from error
    _check_patches(model, name, image_size)
    return model


def _check_options(options: Mapping[str, Any]) -> None:
    for option in options:
        if option in _SET_BY_THE_RUN:
            raise ValueError(f"options must not have {option}: the run sets it from the data set")
        if option in _TRAINED_WEIGHTS:
            raise ValueError(f"options must not have {option}: the network starts untrained")


def _check_patches(model: nn.Module, name: str, image_size: int) -> None:
    """Refuse a size that patches do not tile: timm would silently ignore the remaining pixels."""
    from timm.layers.patch_embed import PatchEmbed

    for module in model.modules():
        if isinstance(module, PatchEmbed) and not module.dynamic_img_pad:
            height, width = module.patch_size
            if image_size % height or image_size % width:
                raise ValueError(
                    f"name {name!r} cuts images into patches of {height}x{width} pixels, which do "
                    f"not tile images of {image_size}x{image_size} (dataset.image_size)"
                )
