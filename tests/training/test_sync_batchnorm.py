"""A network with synchronised BatchNorm computes the same; torch runs it on several GPUs only."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from training_cases import CONSTANT, NESTEROV

from pai.errors import ConfigError
from pai.training.options import Training
from pai.training.step import MaskedStep


def timm_network(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, num_classes=3)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3),
    )  # fmt: skip


class Scaled(nn.BatchNorm2d):
    """BatchNorm that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def options() -> Training:
    return Training(1, 2, NESTEROV, CONSTANT, sync_batchnorm=True)


@pytest.mark.parametrize(
    "build",
    [plain, *map(timm_network, ["efficientnet_b0", "resnetv2_50", "mobilenetv3_small_050"])],
)
def test_each_batchnorm_has_a_substitute_with_its_activation(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, images = build().eval(), torch.randn(2, 3, 32, 32)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    before, parameters = copy.deepcopy(model)(images), dict(model.named_parameters())

    def wrapped(network: nn.Module, devices: Any) -> nn.Module:
        return network

    monkeypatch.setattr("pai.training.step.world_size", lambda: 2)
    monkeypatch.setattr("pai.training.step.DistributedDataParallel", wrapped)
    options().check_network(model)
    MaskedStep(model, {}, options())
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert layers and all(isinstance(layer, nn.SyncBatchNorm) for layer in layers)
    torch.testing.assert_close(model(images), before, rtol=1e-3, atol=1e-3)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in parameters.items())


def test_a_batchnorm_with_a_forward_of_its_own_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(Scaled(3)))
    with pytest.raises(ConfigError, match=r"^training.sync_batchnorm: '1.0' is a Scaled with"):
        options().check_network(model)
    Training(**vars(options()) | {"sync_batchnorm": False}).check_network(model)
