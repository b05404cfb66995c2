"""Vision transformer for small images (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from typing import Any, Literal

from torch import Tensor, nn

Norm = Literal["layer", "batch"]


class TokenBatchNorm(nn.Module):
    """BatchNorm of tokens ``[B, T, C]``: one mean and variance per channel, over B and T."""

    def __init__(self, channels: int, **placement: Any) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, **placement)  # timm says device and dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tokens, ``[B, T, C]``."""
        normalised: Tensor = self.bn(x.transpose(1, 2))
        return normalised.transpose(1, 2)


def vit(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    patch_size: int = 4,
    embed_dim: int = 192,
    depth: int = 9,
    num_heads: int = 12,
    mlp_ratio: float = 2.0,
    norm: Norm = "layer",
) -> nn.Module:
    """Build timm's ``VisionTransformer`` with a class token and learnt positions.

    The defaults are the ViT that Lee et al. (2021, arXiv 2112.13492) train from scratch on CIFAR
    (2.7 M parameters); for 64x64 images they use ``patch_size`` 8. Two things are timm's own: the
    query, key and value projections have biases, and weights start as truncated normals of
    standard deviation 0.02.

    ``norm="batch"`` puts BatchNorm over the channels in the place of every LayerNorm (compare Yao
    et al. 2021, ICCV workshops), so that the BatchNorm warmup can be studied on a transformer. The
    statistics count the class token like any other. It need not train as well as LayerNorm does.

    Raises:
        ValueError: an option is below 1, ``norm`` is unknown, ``patch_size`` does not divide
            ``image_size``, or ``num_heads`` does not divide ``embed_dim``.
    """
    whole = {
        "patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads,
    }  # fmt: skip
    for option, value in whole.items():
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if not mlp_ratio * embed_dim >= 1:
        raise ValueError(f"mlp_ratio must leave at least one hidden unit, got {mlp_ratio}")
    if norm not in ("layer", "batch"):
        raise ValueError(f"norm must be 'layer' or 'batch', got {norm!r}")
    if image_size % patch_size:
        raise ValueError(f"patch_size must divide the image size, {image_size}, got {patch_size}")
    if embed_dim % num_heads:
        raise ValueError(f"num_heads must divide embed_dim, {embed_dim}, got {num_heads}")
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=in_channels,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        norm_layer=TokenBatchNorm if norm == "batch" else None,
    )
    return model
