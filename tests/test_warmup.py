import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pai.warmup import BatchNormWarmup, NoWarmup, Statistics, WarmupReport, warm_up_batchnorm

Batches = list[tuple[Tensor, Tensor]]
BOTH: list[Statistics] = ["running", "population"]


def small_net(*, dropout: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Dropout(0.5 if dropout else 0.0), nn.Conv2d(4, 3, 3, stride=2),
        nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5),
        nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 2),
    )  # fmt: skip


def random_batches(sizes: list[int] | None = None, seed: int = 0) -> Batches:
    stream = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 2, 7, 7, generator=stream) * 3 + 1, torch.zeros(size).long())
        for size in sizes or [4, 6, 2]
    ]


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("statistics", BOTH)
def test_nothing_but_the_statistics_changes(statistics: Statistics) -> None:
    model = small_net(dropout=True).train()
    model[2].eval()
    model[5].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones(3, 4, 3, 3)
    grads = {name: p.grad for name, p in model.named_parameters()}
    flags = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    required = [p.requires_grad for p in model.parameters()]
    generator_state = torch.get_rng_state()
    warm_up_batchnorm(model, random_batches(), statistics=statistics)
    assert [module.training for module in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == required
    assert torch.equal(torch.get_rng_state(), generator_state)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is grads[name]
    assert grads["4.weight"] is not None and bool((grads["4.weight"] == 1).all())
    for name, buffer in model.named_buffers():
        assert not torch.equal(buffer, before[name])


def test_running_statistics_are_those_of_a_training_pass_bit_for_bit() -> None:
    model, peer = small_net().eval(), small_net().train()
    for inputs, _ in random_batches():
        peer(inputs)
    report = warm_up_batchnorm(model, random_batches(), statistics="running")
    assert report == WarmupReport(batchnorm_layers=3, batches=3, statistics="running")
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, peer.get_buffer(name))


def test_running_is_the_default() -> None:
    assert warm_up_batchnorm(small_net(), random_batches()).statistics == "running"


def test_dropout_is_inactive() -> None:
    with_dropout, without = small_net(dropout=True).train(), small_net().train()
    for statistics in BOTH:
        warm_up_batchnorm(with_dropout, random_batches(), statistics=statistics)
        warm_up_batchnorm(without, random_batches(), statistics=statistics)
        for name, buffer in with_dropout.named_buffers():
            assert torch.equal(buffer, without.get_buffer(name))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    offset=st.floats(-1000, 1000),
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(), (3,), (2, 3)]),
)
def test_population_statistics_are_exact_whatever_the_batches_and_their_order(
    sizes: list[int], offset: float, seed: int, shape: tuple[int, ...]
) -> None:
    kind: Callable[[int], nn.Module] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[
        len(shape)
    ]
    sizes = [size + 1 for size in sizes] if not shape else sizes
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 2, *shape, generator=stream) + offset
    shuffled = x[torch.randperm(len(x), generator=stream)]
    values = x.double().transpose(0, 1).flatten(1)
    for split in (x.split(sizes), shuffled.split(sizes[::-1]), [x]):
        layer = kind(2)
        model = nn.Sequential(layer)
        warm_up_batchnorm(model, [(part, part) for part in split], statistics="population")
        mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
        torch.testing.assert_close(mean.double(), values.mean(1), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(variance.double(), values.var(1), rtol=1e-5, atol=1e-9)


def test_population_statistics_survive_a_mean_far_from_zero() -> None:
    x = 1e4 + torch.randn(64, 1, 8, generator=torch.Generator().manual_seed(0))
    layer = nn.BatchNorm1d(1)
    batches = [(part, part) for part in x.split(7)]
    warm_up_batchnorm(nn.Sequential(layer), batches, statistics="population")
    exact = float(x.double().var())
    assert float(layer.get_buffer("running_var")) == pytest.approx(exact, rel=1e-6)


def test_population_statistics_of_deep_layers_are_of_what_each_layer_saw() -> None:
    model = small_net().train()
    seen: dict[nn.Module, list[Tensor]] = {}
    peer = copy.deepcopy(model)
    layers = [module for module in peer if hasattr(module, "running_mean")]
    for layer in layers:
        seen[layer] = []
        layer.register_forward_pre_hook(lambda module, args: seen[module].append(args[0].double()))
    for inputs, _ in random_batches():
        peer(inputs)
    warm_up_batchnorm(model, random_batches(), statistics="population")
    for name, layer in peer.named_children():
        if layer not in seen:
            continue
        values = torch.cat([x.transpose(0, 1).flatten(1) for x in seen[layer]], 1).detach()
        mean = model.get_buffer(f"{name}.running_mean").double()
        variance = model.get_buffer(f"{name}.running_var").double()
        torch.testing.assert_close(mean, values.mean(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(variance, values.var(1), rtol=1e-5, atol=1e-6)


def test_population_statistics_forget_what_was_there_before() -> None:
    fresh, stale = small_net(), small_net()
    for buffer in stale.buffers():
        buffer.fill_(100)
    for model in (fresh, stale):
        warm_up_batchnorm(model, random_batches(), statistics="population")
    for name, buffer in fresh.named_buffers():
        if "num_batches" not in name:
            assert torch.equal(buffer, stale.get_buffer(name))


@pytest.mark.parametrize("statistics", BOTH)
def test_num_batches_stops_early(statistics: Statistics) -> None:
    short, full = small_net(), small_net()
    taken = []

    class Counting:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in random_batches():
                taken.append(batch)
                yield batch

    report = warm_up_batchnorm(short, Counting(), statistics=statistics, num_batches=2)
    warm_up_batchnorm(full, random_batches()[:2], statistics=statistics)
    assert report.batches == len(taken) == 2
    for name, buffer in short.named_buffers():
        assert torch.equal(buffer, full.get_buffer(name))


def test_fewer_batches_than_allowed_are_all_used() -> None:
    assert warm_up_batchnorm(small_net(), random_batches(), num_batches=99).batches == 3


@pytest.mark.parametrize("statistics", BOTH)
def test_a_model_without_batchnorm_is_not_even_run(statistics: Statistics) -> None:
    model = nn.Sequential(
        nn.Linear(3, 3), nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False)
    )
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    report = warm_up_batchnorm(model, [(torch.ones(2, 3), torch.ones(2))], statistics=statistics)
    assert report == WarmupReport(0, 0, None)


@pytest.mark.parametrize("statistics", BOTH)
def test_empty_batches_are_refused_and_change_nothing(statistics: Statistics) -> None:
    model = small_net()
    before = buffers_of(model)
    with pytest.raises(ValueError, match="empty"):
        warm_up_batchnorm(model, [], statistics=statistics)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("statistics", BOTH)
def test_hooks_and_flags_are_restored_when_the_forward_pass_raises(statistics: Statistics) -> None:
    model = small_net(dropout=True).train()
    model[3].eval()
    flags = [module.training for module in model.modules()]
    wrong_shape = [*random_batches(), (torch.zeros(2, 9, 7, 7), torch.zeros(2))]
    with pytest.raises(RuntimeError):
        warm_up_batchnorm(model, wrong_shape, statistics=statistics)
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("statistics", BOTH)
def test_no_graph_is_recorded(statistics: Statistics) -> None:
    model, outputs = small_net(), []
    model.register_forward_hook(lambda module, args, output: outputs.append(output))
    warm_up_batchnorm(model, random_batches(), statistics=statistics)
    assert len(outputs) == 3 and not any(output.requires_grad for output in outputs)


@pytest.mark.parametrize("statistics", BOTH)
def test_hooks_of_the_caller_stay(statistics: Statistics) -> None:
    model = small_net()
    handle = model[1].register_forward_pre_hook(lambda *_: None)
    warm_up_batchnorm(model, random_batches(), statistics=statistics)
    assert list(model[1]._forward_pre_hooks) == [handle.id]


@pytest.mark.parametrize("number", [0, -1])
def test_fewer_than_one_batch_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="num_batches"):
        BatchNormWarmup(num_batches=number)
    with pytest.raises(ValueError, match="num_batches"):
        warm_up_batchnorm(small_net(), random_batches(), num_batches=number)


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="'running' or 'population', got 'exact'"):
        warm_up_batchnorm(small_net(), random_batches(), statistics="exact")  # type: ignore[arg-type]


def test_no_warmup_changes_nothing_and_counts_the_layers() -> None:
    model = small_net()
    before = buffers_of(model)
    assert NoWarmup()(model, random_batches()) == WarmupReport(3, 0, None)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("statistics", ["running", "population"])
def test_half_a_warmup_is_none(statistics: Statistics) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(size, 4), torch.zeros(size)) for size in (8, 1)]  # 1: no variance
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        warm_up_batchnorm(model, batches, statistics=statistics)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
