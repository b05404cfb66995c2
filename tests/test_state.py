from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pai.state import (
    batch_statistics,
    dense_weights,
    kept_weights,
    masked_weights,
    scoring_mode,
)


class StoppedError(Exception):
    pass


def odd_net() -> nn.Sequential:
    """Every kind of state at once: mixed flags, a frozen weight, some gradients, three dtypes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 6), nn.Linear(6, 3)
    )
    model.register_buffer("table", torch.tensor([1, -2, 3]))
    model.register_buffer("volatile", torch.tensor([-0.0, float("nan")]), persistent=False)
    model.counts = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    model[2].eval()
    model[3].weight.requires_grad_(False)
    model[0].weight.grad = torch.randn(6, 4)
    model[3].weight.grad = torch.randn(6, 6)
    return model


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().clone().contiguous().numpy().tobytes()


def snapshot(model: nn.Module) -> dict[str, Any]:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {
        "bits": {name: bits(tensor) for name, tensor in tensors.items()},
        "identity": {name: id(tensor) for name, tensor in tensors.items()},
        "flags": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: (id(p.grad), p.grad) for name, p in model.named_parameters()},
        "grad bits": [bits(p.grad) for p in model.parameters() if p.grad is not None],
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
    }


def leave(model: nn.Module) -> None:
    pass


def differentiate(model: nn.Module) -> None:
    model(torch.randn(5, 4)).square().sum().backward()


def run_in_train_mode(model: nn.Module) -> None:
    model.train()
    differentiate(model)


def mutate_buffers(model: nn.Module) -> None:
    for buffer in model.buffers():
        buffer.fill_(7)


def freeze_and_set_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = torch.zeros_like(parameter)


BLOCKS: list[Callable[[nn.Module], None]] = [
    leave, differentiate, run_in_train_mode, mutate_buffers, freeze_and_set_gradients,
]  # fmt: skip


@pytest.mark.parametrize("raising", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_scoring_mode_restores_every_bit(block: Callable[[nn.Module], None], raising: bool) -> None:
    model = odd_net()
    before = snapshot(model)
    try:
        with scoring_mode(model):
            block(model)
            if raising:
                raise StoppedError
    except StoppedError:
        assert raising
    after = snapshot(model)
    for key, value in before.items():
        if key == "grad":
            assert all(after[key][name][1] is grad for name, (_, grad) in value.items())
        else:
            assert after[key] == value, key


def test_a_buffer_that_the_block_replaces_is_restored() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls: Tensor = self.calls + 1
            return x

    model = nn.Sequential(nn.Linear(2, 2), Counting())
    before = snapshot(model)
    with scoring_mode(model):
        model(torch.ones(1, 2))
    assert snapshot(model)["bits"] == before["bits"]


def test_scoring_mode_does_not_swallow_the_error() -> None:
    with pytest.raises(StoppedError), scoring_mode(odd_net()):
        raise StoppedError


def test_inside_the_block_the_model_is_ready_for_scoring() -> None:
    model = odd_net()
    with scoring_mode(model):
        assert not any(module.training for module in model.modules())
        for parameter in model.parameters():
            assert parameter.grad is None
            assert parameter.requires_grad == parameter.is_floating_point()
        assert not torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("enabled", [False, True])
def test_the_fused_attention_switch_is_restored(enabled: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(enabled)
        with scoring_mode(odd_net()):
            pass
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_attention_has_a_gradient_inside_the_block() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with scoring_mode(layer):
        layer(torch.randn(2, 3, 8)).sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_scoring_mode_can_be_nested() -> None:
    model = odd_net()
    before = snapshot(model)
    with scoring_mode(model):
        differentiate(model)
        inner = [parameter.grad for parameter in model.parameters()]
        with scoring_mode(model):
            differentiate(model)
        assert all(p.grad is grad for p, grad in zip(model.parameters(), inner, strict=True))
    assert snapshot(model)["bits"] == before["bits"]


def special_net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2))
    values = [-0.0, 0.0, float("nan"), float("inf"), 1e-45, -1.5, 3.0, -float("inf")]
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor(values).view(2, 4))
    return model


@pytest.mark.parametrize("raising", [False, True])
def test_masked_weights_puts_the_very_same_bits_back(raising: bool) -> None:
    model = special_net()
    before = snapshot(model)
    keep = torch.tensor([[False, False, False, False], [False, True, False, True]])
    try:
        with masked_weights(model, {"0.weight": keep}):
            inside = model.get_parameter("0.weight").detach().clone()
            if raising:
                raise StoppedError
    except StoppedError:
        assert raising
    assert torch.equal(inside[~keep], torch.zeros(6))
    assert torch.equal(inside[keep], torch.tensor([-1.5, -float("inf")]))
    after = snapshot(model)
    for key in ("bits", "identity", "requires_grad"):
        assert after[key] == before[key]


def test_masked_weights_leaves_other_parameters_alone() -> None:
    model = special_net()
    other = bits(model.get_parameter("1.weight"))
    with masked_weights(model, {"0.weight": torch.zeros(2, 4, dtype=torch.bool)}):
        assert not model.get_parameter("0.weight").any()
        assert bits(model.get_parameter("1.weight")) == other


def test_masked_weights_differentiates_at_the_masked_point() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    keep = torch.tensor([[True, False, True], [False, True, True]])
    x = torch.tensor([[1.0, 2.0, 3.0]])
    weight = model.get_parameter("0.weight")
    expected = weight.detach() * keep @ x[0]
    with masked_weights(model, {"0.weight": keep}):
        torch.testing.assert_close(model(x)[0], expected)
        model(x).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, x.expand(2, 3))  # pruned weights have one too


def test_without_a_mask_nothing_happens() -> None:
    model = special_net()
    before = snapshot(model)
    with masked_weights(model, None):
        assert snapshot(model)["bits"] == before["bits"]
    assert snapshot(model)["bits"] == before["bits"]


def test_dense_weights_are_known_inside_masks_inside_masks() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1))
    weight = model.get_parameter("0.weight")
    dense = weight.detach().clone()
    own = {"0.weight": weight}
    with masked_weights(model, {"0.weight": torch.tensor([[True, False]])}):
        with masked_weights(model, {"0.weight": torch.tensor([[False, False]])}):
            assert torch.equal(dense_weights(own)["0.weight"], dense)
            assert kept_weights(own)["0.weight"].tolist() == [[False, False]]
            assert not weight.any()
        assert torch.equal(dense_weights(own)["0.weight"], dense)
        assert kept_weights(own)["0.weight"].tolist() == [[True, False]]
        assert kept_weights({"1.weight": model.get_parameter("1.weight")})["1.weight"].all()
    assert kept_weights(own)["0.weight"].all()
    assert torch.equal(weight, dense)


@pytest.mark.parametrize("store", [False, True])
def test_batch_statistics_normalise_and_are_stored_if_asked_for(store: bool) -> None:
    norm, dropout = nn.BatchNorm1d(2), nn.Dropout(0.9)
    model = nn.Sequential(norm, dropout).eval()
    x = torch.randn(50, 2) * 3 + 1
    with batch_statistics(model, store=store):
        out = model(x)
    torch.testing.assert_close(out.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    assert (norm.training, norm.momentum, norm.track_running_stats) == (False, 0.1, True)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if store:
        torch.testing.assert_close(norm.running_mean, x.mean(0))
        torch.testing.assert_close(norm.running_var, x.var(0))
    else:
        assert norm.running_mean.tolist() == [0, 0]
        assert norm.num_batches_tracked == 0
