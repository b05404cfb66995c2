"""The options of a step, each against its definition."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_cases import CONSTANT, convnet, digits, plain_net, random_mask, settings

from pai.training.mixup import Mixture, draw_mixture
from pai.training.optimizers import Sgd
from pai.training.options import Training
from pai.training.step import MaskedStep

PLAIN = Sgd(lr=1.0, momentum=0.0)


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return next(iter(digits().training_batches(32, 0, 0)))


def options(optimizer: Any = PLAIN, **others: Any) -> Training:
    return settings(1, optimizer, lr_schedule=CONSTANT, **others)


def moves(model: nn.Module, before: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield by how much each parameter moved: with ``PLAIN``, minus its gradient."""
    for name, parameter in model.named_parameters():
        yield name, (parameter - before.get_parameter(name)).detach()


def masked_copy(model: nn.Module, mask: dict[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, keep in mask.items():
            twin.get_parameter(name).mul_(keep)
    return twin


def kept_gradient(
    model: nn.Module, mask: dict[str, Tensor], batch: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """Return the gradient of the masked network with respect to what is left of it."""
    twin = masked_copy(model, mask)
    nn.functional.cross_entropy(twin(batch[0]), batch[1]).backward()
    return {
        name: p.grad * mask[name] if name in mask else p.grad
        for name, p in twin.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("bound", [0.05, 1e3])
def test_the_gradient_is_clipped_by_the_norm_of_the_kept_part(
    bound: float, batch: tuple[Tensor, Tensor]
) -> None:
    model = plain_net()
    mask = random_mask(model, density=0.1)
    start, expected = masked_copy(model, mask), kept_gradient(model, mask, batch)
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    assert 0.05 < norm < 1e3  # one bound is at work, the other is not
    MaskedStep(model, mask, options(clip_grad_norm=bound))(*batch, 1.0, None)
    scale = min(1.0, bound / float(norm))
    for name, move in moves(model, start):
        torch.testing.assert_close(move, -scale * expected[name], rtol=1e-4, atol=1e-6)


def test_mixup_is_its_definition(batch: tuple[Tensor, Tensor]) -> None:
    (x, y), model = batch, plain_net()
    mask = random_mask(model)
    start = masked_copy(model, mask)
    mixture = Mixture(0.3, torch.randperm(len(y), generator=torch.Generator().manual_seed(0)))
    twin = copy.deepcopy(start)
    logits = twin(0.3 * x + 0.7 * x[mixture.pair])
    log_probability = logits.log_softmax(1)
    one_hot = nn.functional.one_hot(y, 10).float()
    target = 0.3 * one_hot + 0.7 * one_hot[mixture.pair]
    smooth = 0.8 * target + 0.2 / 10
    expected = -(smooth * log_probability).sum(1).mean()
    expected.backward()
    step = MaskedStep(model, mask, options(label_smoothing=0.2))
    loss, correct = step(x, y, 1.0, mixture)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    hit = target.gather(1, logits.argmax(1, keepdim=True)).sum()
    assert float(correct) == pytest.approx(float(hit), rel=1e-6)
    for name, move in moves(model, start):
        gradient = twin.get_parameter(name).grad
        assert gradient is not None
        gradient = gradient * mask[name] if name in mask else gradient
        torch.testing.assert_close(move, -gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_of_a_mixture_is_beta_distributed(alpha: float) -> None:
    draws = [draw_mixture(alpha, 7, 0, f"mixup/0/{number}") for number in range(4000)]
    lam = torch.tensor([draw.lam for draw in draws])
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(lam.mean()) == pytest.approx(0.5, abs=5 * (variance / 4000) ** 0.5)
    assert float(lam.var()) == pytest.approx(variance, rel=0.1)
    assert all(sorted(draw.pair.tolist()) == list(range(7)) for draw in draws[:50])
    partners = torch.stack([draw.pair for draw in draws]).double().mean(0)
    assert partners.tolist() == pytest.approx([3.0] * 7, abs=0.2)


def test_draws_depend_on_seed_and_purpose_only() -> None:
    first = draw_mixture(1.0, 9, 3, "mixup/1/2")
    torch.rand(3)
    again = draw_mixture(1.0, 9, 3, "mixup/1/2")
    assert (first.lam, first.pair.tolist()) == (again.lam, again.pair.tolist())
    for seed, purpose in ((4, "mixup/1/2"), (3, "mixup/1/3"), (3, "mixup/2/2")):
        assert draw_mixture(1.0, 9, seed, purpose).lam != first.lam


def test_bfloat16_runs_activations_in_it_and_keeps_weights_and_logits_in_float32(
    batch: tuple[Tensor, Tensor],
) -> None:
    model, seen = convnet(), set()
    mask = random_mask(model)
    exact = kept_gradient(model.eval(), mask, batch)
    start = masked_copy(model, mask)
    model[0].register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    chosen = options(precision="bfloat16")
    MaskedStep(model, mask, chosen)(*batch, 1.0, None)
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
    with torch.no_grad():
        assert chosen.run(model, batch[0]).dtype == torch.float32
    for name, move in moves(model, start):
        difference = (move + exact[name]).norm() / exact[name].norm().clamp(min=1e-3)
        assert 0 < difference < 0.1, name


def test_channels_last_is_a_layout_and_no_other_computation(batch: tuple[Tensor, Tensor]) -> None:
    results, images = [], batch[0].repeat(1, 3, 1, 1) * torch.tensor([1, 2, 3]).view(3, 1, 1)
    for channels_last in (False, True):
        model = convnet().eval()
        model[0] = first = nn.Conv2d(3, 4, 3, bias=False)
        nn.init.normal_(first.weight, generator=torch.Generator().manual_seed(0))
        layouts: set[bool] = set()
        model[0].register_forward_hook(
            lambda module, args, out, seen=layouts: seen.add(
                out.is_contiguous(memory_format=torch.channels_last)
            )
        )
        step = MaskedStep(model, random_mask(model), options(channels_last=channels_last))
        step(images, batch[1], 1.0, None)
        assert layouts == {channels_last}
        results.append(model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6)
        assert results[1][name].shape == value.shape


def test_the_rate_of_each_group_is_multiplied_by_the_factor(batch: tuple[Tensor, Tensor]) -> None:
    model = plain_net()
    chosen = options(Sgd(lr=0.5, momentum=0.0, decay_norms_and_biases=False))
    step = MaskedStep(model, random_mask(model), chosen)
    for factor in (0.25, 1.0, 0.5):
        step(*batch, factor, None)
        assert [group["lr"] for group in step.optimizer.param_groups] == [0.5 * factor] * 2


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (nn.Conv2d(8, 16, 1, stride=2), False),
        (nn.Conv2d(16, 32, 1, stride=2), True),
        (nn.Conv2d(8, 16, 1), True),
        (nn.Conv2d(8, 16, 3, stride=2), True),
        (nn.Conv2d(8, 16, 1, stride=2, device="meta"), True),
    ],
)
def test_channels_last_is_left_where_torch_corrupts_memory(layer: nn.Module, kept: bool) -> None:
    fitted = options(channels_last=True).fitted_to(nn.Sequential(layer, nn.Flatten()))
    assert fitted.channels_last is kept
    assert not options(channels_last=False).fitted_to(nn.Sequential(layer)).channels_last
