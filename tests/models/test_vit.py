import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LABELS, config
from torch import nn

import pai
from pai.models.vit import TokenBatchNorm, vit
from pai.plan import prepare
from pai.runner import run


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    defaults = {"image_size": 16, "embed_dim": 12, "depth": 2, "num_heads": 3}
    return vit(**{"num_classes": 5, "in_channels": 1, **defaults, **options})


@pytest.mark.parametrize(
    ("image_size", "patch_size", "tokens"), [(32, 4, 64), (64, 8, 64), (8, 4, 4)]
)
def test_an_image_becomes_one_token_per_patch_and_a_class_token(
    image_size: int, patch_size: int, tokens: int
) -> None:
    model = small(image_size=image_size, patch_size=patch_size)
    images = torch.randn(3, 1, image_size, image_size)
    assert model.forward_features(images).shape == (3, tokens + 1, 12)
    assert model(images).shape == (3, 5)


def test_every_pixel_and_every_position_counts() -> None:
    model = small().eval()
    images = torch.randn(1, 1, 16, 16, requires_grad=True)
    model(images)[0, 0].backward()
    assert images.grad is not None
    assert bool((images.grad != 0).all())
    with torch.no_grad():
        assert not torch.allclose(model(images), model(images.roll(4, dims=-1)), atol=1e-5)


def test_the_default_is_the_published_design() -> None:
    with torch.device("meta"):
        model: Any = vit(num_classes=10, in_channels=3, image_size=32)
    assert len(model.blocks) == 9
    assert model.blocks[0].attn.num_heads == 12
    shapes = {name: tuple(p.shape) for name, p in model.blocks[0].named_parameters() if p.ndim == 2}
    assert shapes == {
        "attn.qkv.weight": (576, 192), "attn.proj.weight": (192, 192),
        "mlp.fc1.weight": (384, 192), "mlp.fc2.weight": (192, 384),
    }  # fmt: skip
    assert model.pos_embed.shape == (1, 65, 192)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("patch_size", 0, "at least 1"), ("patch_size", 5, "divide the image size, 16"),
        ("patch_size", 32, "divide the image size, 16"), ("embed_dim", 0, "at least 1"),
        ("depth", 0, "at least 1"), ("num_heads", 0, "at least 1"),
        ("num_heads", 5, "divide embed_dim, 12"), ("mlp_ratio", 0.0, "hidden unit"),
        ("mlp_ratio", -1.0, "hidden unit"),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_refused(option: str, value: float, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{option} must .*{words}.*got {value}"):
        small(**{option: value})


def test_a_run_without_batchnorm_says_that_the_warmup_had_nothing_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = ("model.depth=1", "model.embed_dim=8", "model.num_heads=2", "training.epochs=1")
    plan = prepare(config("model=vit_cifar", *tiny, "scorer=snip", "logger=none", "device=cpu"))
    with caplog.at_level(logging.INFO, logger="pai"):
        run(plan, tmp_path, LABELS)
    (line,) = [line for line in caplog.messages if line.startswith("warmup:")]
    assert "no BatchNorm layer, there is nothing to do" in line
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["status"] == "completed"
    assert record["warmup"] == {"batchnorm_layers": 0, "batches": 0, "statistics": None}


def test_batchnorm_normalises_each_channel_over_images_and_tokens() -> None:
    tokens = torch.randn(6, 5, 3) * torch.tensor([1.0, 4.0, 0.5]) + torch.tensor([0.0, 7.0, -2.0])
    norm = TokenBatchNorm(3)
    found = norm(tokens)
    deviation, mean = torch.std_mean(tokens, dim=(0, 1), correction=0)
    expected = (tokens - mean) / (deviation**2 + 1e-5).sqrt()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(norm.bn.running_mean, 0.1 * mean)


def test_a_vit_with_batchnorm_has_no_layernorm_and_is_warmed_up() -> None:
    model = small(norm="batch")
    assert not any(isinstance(module, nn.LayerNorm) for module in model.modules())
    images = torch.randn(8, 1, 16, 16)
    report = pai.warm_up_batchnorm(model, [(images, torch.zeros(8))], statistics="population")
    assert report.batchnorm_layers == 2 * 2 + 1
    first = model.blocks[0].norm1.bn
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed(images))
    torch.testing.assert_close(first.running_mean, tokens.mean(dim=(0, 1)))
    torch.testing.assert_close(first.running_var, tokens.var(dim=(0, 1)))


def test_scores_of_a_vit_with_batchnorm_are_those_of_autograd() -> None:
    model = small(norm="batch").eval().double()
    batch = torch.randn(4, 1, 16, 16).double(), torch.tensor([0, 1, 2, 3])
    found = pai.curvature_diagonal(model, [batch], estimator="empirical_fisher")
    weight = model.blocks[1].mlp.fc1.weight
    squares = torch.zeros_like(weight)
    for image, target in zip(*batch, strict=True):
        loss = nn.functional.cross_entropy(model(image[None]), target[None])
        squares += torch.autograd.grad(loss, weight)[0] ** 2 / 4
    torch.testing.assert_close(found["blocks.1.mlp.fc1.weight"], squares)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^norm must .*got 'group'"):
        small(norm="group")
