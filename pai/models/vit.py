"""Vision transformer for small images (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from torch import nn


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
) -> nn.Module:
    """Build timm's ``VisionTransformer`` with a class token and learnt positions.

    The defaults are the ViT that Lee et al. (2021, arXiv 2112.13492) train from scratch on CIFAR
    (2.7 M parameters); for 64x64 images they use ``patch_size`` 8. Two things are timm's own: the
    query, key and value projections have biases, and weights start as truncated normals of
    standard deviation 0.02.

    Raises:
        ValueError: an option is below 1, ``patch_size`` does not divide ``image_size``, or
            ``num_heads`` does not divide ``embed_dim``.
    """
    whole = {
        "patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads,
    }  # fmt: skip
    for option, value in whole.items():
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if not mlp_ratio * embed_dim >= 1:
        raise ValueError(f"mlp_ratio must leave at least one hidden unit, got {mlp_ratio}")
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
    )
    return model
