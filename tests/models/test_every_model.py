"""Every model of the library runs, is scored, and starts from the seed; sizes are the published."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from tiny import config, fitting
from torch import nn
from torch.nn import functional as F

import pai
from pai.data.bundle import DataSpec
from pai.library import available
from pai.models.timm import timm_model
from pai.models.torchvision_resnet import imagenet_resnet
from pai.models.vit import vit
from pai.plan import Plan, prepare
from pai.prunable import classifier, prunable_parameters
from pai.seeding import global_seed


@dataclass(frozen=True)
class Built:
    plan: Plan
    model: nn.Module  # of seed 0; nobody changes its parameters


def build(plan: Plan, seed: int) -> nn.Module:
    with global_seed(seed, "initialization"):
        return plan.build_model()


@pytest.fixture(params=available("model"), scope="module")
def built(request: pytest.FixtureRequest) -> Built:
    plan = prepare(config(f"model={request.param}", *fitting(request.param)))
    return Built(plan, build(plan, 0))


def test_it_gives_logits_and_snip_scores_that_are_alive(built: Built) -> None:
    model, spec = built.model, built.plan.spec
    if isinstance(spec, DataSpec):
        stream = torch.Generator().manual_seed(0)
        inputs = torch.randn(6, spec.channels, spec.height, spec.width, generator=stream)
        batches = [(inputs, torch.arange(6))]
    else:
        batches = list(built.plan.dataset.load().scoring_batches(3, 6, seed=0))
        inputs = batches[0][0]
    pai.warm_up_batchnorm(model, batches)
    with torch.no_grad():
        logits = model.eval()(inputs)
    assert logits.shape == (len(inputs), *spec.outputs()[1:])
    assert float((logits - logits.mean(0)).abs().max()) > 1e-3
    scores = pai.load_scorer("snip")(model, batches)
    assert {name: score.shape for name, score in scores.items()} == {
        name: weight.shape for name, weight in prunable_parameters(model).items()
    }
    assert all(bool(score.isfinite().all()) for score in scores.values())
    assert [name for name, score in scores.items() if not score.any()] == []


@pytest.mark.parametrize("name", available("model"))
def test_it_can_be_trained_in_bfloat16(name: str) -> None:
    # Images of 8 pixels would give these a stride on a single one: docs/training.md
    wide = name in ("timm", "resnet18_tiny") or name.endswith("_imagenet")
    chosen = [f"model={name}", *fitting(name), *["dataset.image_size=32"] * wide]
    plan = prepare(config(*chosen))
    model = build(plan, 0).train()
    options = replace(plan.training, precision="bfloat16").fitted_to(model)
    inputs, targets = next(iter(plan.dataset.load().training_batches(6, 0, 0)))
    loss = F.cross_entropy(options.run(model, inputs), targets)
    loss.backward()
    assert loss.dtype == torch.float32
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) >= set(prunable_parameters(model))
    assert [n for n, gradient in gradients.items() if not gradient.isfinite().all()] == []
    assert [n for n in prunable_parameters(model) if not gradients[n].any()] == []


def test_its_classifier_alone_is_left_out(built: Built) -> None:
    everything = prunable_parameters(built.model, include_classifier=True)
    (left_out,) = everything.keys() - prunable_parameters(built.model).keys()
    head = classifier(built.model)
    assert head is not None
    assert everything[left_out] is head.weight
    assert everything[left_out].shape[0] == built.plan.spec.outputs()[1]


def test_its_initialization_is_that_of_the_seed(built: Built) -> None:
    again, other = (dict(build(built.plan, seed).named_parameters()) for seed in (0, 1))
    drawn = prunable_parameters(built.model, include_classifier=True)
    for name, parameter in built.model.named_parameters():
        assert torch.equal(parameter, again[name])
        assert name not in drawn or not torch.equal(parameter, other[name])


@pytest.mark.parametrize(
    ("builder", "options", "published"),
    [
        (imagenet_resnet, {"depth": 18}, 11_689_512),
        (imagenet_resnet, {"depth": 34}, 21_797_672),
        (imagenet_resnet, {"depth": 50}, 25_557_032),
        (timm_model, {"image_size": 224, "name": "vit_tiny_patch16_224"}, 5_717_416),
        (timm_model, {"image_size": 224, "name": "vit_small_patch16_224"}, 22_050_664),
        (timm_model, {"image_size": 224, "name": "resnet18"}, 11_689_512),
        (
            vit,
            {
                "image_size": 224, "patch_size": 16, "embed_dim": 192, "depth": 12,
                "num_heads": 3, "mlp_ratio": 4.0,
            },
            5_717_416,
        ),
    ],
)  # fmt: skip
def test_the_published_numbers_of_parameters_for_imagenet(
    builder: Callable[..., nn.Module], options: dict[str, object], published: int
) -> None:
    with torch.device("meta"):
        model = builder(num_classes=1000, in_channels=3, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == published
