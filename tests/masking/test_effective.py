"""Effective weights of any network, against changing entries one by one."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from brute_force import effective_by_brute_force
from tiny import check, tiny_run
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.errors import ConfigError
from pai.masking.effective import Connectivity, effective_kept
from pai.masking.mask import dense_mask, mask_report
from pai.masking.moves import NotDefinedError
from pai.masking.schedule import find_mask
from pai.masking.select import select
from pai.masking.target import reach_effective
from pai.models.resnet import thin_resnet


class Branches(nn.Module):
    """Grouped and depthwise convolutions, concatenation, a residual addition, max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.depthwise = nn.Conv2d(4, 4, 3, stride=2, groups=4)
        self.point = nn.Conv2d(8, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(x), 0.1)
        pooled = F.max_pool2d(self.grouped(x), 2)
        both = torch.cat([pooled, self.depthwise(x)], 1)
        out = self.norm(self.point(both))
        out += pooled
        return self.head(F.gelu(out).flatten(1))


class SqueezeExcite(nn.Module):
    """Channels times gates made of all channels, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.reduce, self.expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head((x * gate).mean((2, 3)))


class Attention(nn.Module):
    """A transformer block with class token and positions; read out at the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Parameter(torch.zeros(1, 4, 4))
        self.norm = nn.LayerNorm(4)
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.head = nn.Linear(4, 2)
        self.with_norm = True

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.positions
        y = self.norm(x) if self.with_norm else x
        q, k, v = self.qkv(y).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.proj(mixed) + (x if self.with_norm else 0)
        return self.head(x + self.mlp(x))[:, 0]


class PlainAttention(Attention):
    """The same without LayerNorm and without the shortcut around the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.with_norm = False


def circular() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), padding=(2, 1), padding_mode="circular"), nn.LeakyReLU(),
        nn.Conv2d(3, 2, (2, 4), padding="same", padding_mode="circular"), nn.LeakyReLU(),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(50, 2),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 7), nn.BatchNorm1d(7), nn.LeakyReLU(), nn.Linear(7, 6), nn.Softplus(),
        nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3),
    )  # fmt: skip


def prepared(
    build: Callable[[], nn.Module], shape: tuple[int, ...], density: float, seed: int
) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """A network in float64 with random parameters, zero biases and a random mask, and inputs."""
    torch.manual_seed(seed)
    model = build().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.3)
            if parameter.ndim > 1:
                scale = (density * parameter[0].numel()) ** -0.5
                parameter.mul_(torch.randn_like(parameter).sign() * scale)
            elif name.endswith("bias"):
                parameter.zero_()
    parameters = pai.prunable_parameters(model, include_classifier=True)
    mask = {name: torch.rand(p.shape) < density for name, p in parameters.items()}
    pai.apply_mask(model, mask)
    return model, mask, torch.rand(2, *shape, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("build", "shape", "density"),
    [
        (Branches, (2, 8, 8), 0.25), (SqueezeExcite, (2, 4, 4), 0.35), (Attention, (3, 3), 0.3),
        (PlainAttention, (3, 3), 0.4), (perceptron, (5,), 0.25), (circular, (2, 3, 4), 0.2),
    ],
)  # fmt: skip
def test_effective_weights_are_those_that_brute_force_finds(
    build: Callable[[], nn.Module], shape: tuple[int, ...], density: float, seed: int
) -> None:
    model, mask, inputs = prepared(build, shape, density, seed)
    if build is Branches:  # brute force sees only one entry of each window of a maximum
        model = without_maxima(model)
    truth = effective_by_brute_force(model, mask, inputs)
    found = effective_kept(model, mask, inputs)
    for name, keep in truth.items():
        assert torch.equal(found[name], keep), name


def without_maxima(model: nn.Module) -> nn.Module:
    class Smooth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.__dict__.update(model.__dict__)

        def forward(self, x: Tensor) -> Tensor:
            original = F.max_pool2d
            try:
                F.max_pool2d = F.avg_pool2d  # type: ignore[assignment]
                out: Tensor = model(x)
                return out
            finally:
                F.max_pool2d = original

    return Smooth().eval()


def test_maxima_connect_all_that_they_are_taken_over() -> None:
    model, mask, inputs = prepared(Branches, (2, 8, 8), 0.3, 0)
    found, smooth = effective_kept(model, mask, inputs), without_maxima(model)
    for name, keep in effective_kept(smooth, mask, inputs).items():
        assert torch.equal(found[name], keep)


def test_packed_attention_is_the_same_as_separate_projections() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.attention = (
                nn.Linear(3, 4),
                nn.MultiheadAttention(4, 2, batch_first=True),
            )
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.qkv(x)
            return self.head(self.attention(x, x, x, need_weights=False)[0]).mean(1)

    model, mask, inputs = prepared(Packed, (3, 3), 1.0, 0)
    packed = mask["attention.in_proj_weight"]
    packed[8:10] = False  # no value in the first head: its queries and keys are of no use
    packed[6:8] = False  # no key in the second head: its queries are of no use, its values are
    found = effective_kept(model, mask, inputs)["attention.in_proj_weight"]
    assert found[10:].all()
    assert not found[:10].any()


def test_the_network_without_values_of_its_weights_decides() -> None:
    model = thin_resnet(num_classes=3, in_channels=2, depth=8, width=4)
    mask = select({n: torch.rand(p.shape) for n, p in pai.prunable_parameters(model).items()}, 0.95)
    inputs = torch.zeros(1, 2, 8, 8)
    before = effective_kept(model, mask, inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    after = effective_kept(model, mask, inputs)
    assert all(torch.equal(before[name], after[name]) for name in mask)


def test_tracing_leaves_the_model_alone() -> None:
    model = Branches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    effective_kept(model, dense_mask(pai.prunable_parameters(model)), torch.rand(2, 2, 8, 8))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_tokens_are_an_input_like_any_other() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3), nn.Linear(3, 2))
    mask = dense_mask(pai.prunable_parameters(model, include_classifier=True))
    mask["3.weight"][:, 1] = False
    found = effective_kept(model, mask, torch.zeros(1, 3, dtype=torch.long))
    assert not found["2.weight"][1].any() and found["2.weight"][[0, 2]].all()


class Sorting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.sort().values)


class Deciding(Sorting):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


@pytest.mark.parametrize(
    ("model", "reason"), [(Sorting(), r"aten\.sort"), (Deciding(), "cannot be traced: It appears")]
)
def test_where_it_is_not_defined_the_reason_is_given(model: nn.Module, reason: str) -> None:
    mask = dense_mask(pai.prunable_parameters(model, include_classifier=True))
    with pytest.raises(NotDefinedError, match=reason):
        effective_kept(model, mask, torch.zeros(1, 4))
    report = mask_report(model, mask, torch.zeros(1, 4))
    assert report["effective_sparsity"] is None and report["dead_layers"] == []
    assert report["effective_undefined"] is not None


class Unpools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2, return_indices=True)
        self.unpool, self.head = nn.MaxUnpool2d(2), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.unpool(*self.pool(self.conv(x))).flatten(1))


class Points(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 5, 3, padding=1), nn.Linear(80, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.head((h * (h.max(1, keepdim=True)[1] > 2)).flatten(1))


@pytest.mark.parametrize("build", [Unpools, Points])
def test_where_a_maximum_is_has_no_rule(build: Callable[[], nn.Module]) -> None:
    model, inputs = build(), torch.zeros(1, 1, 4, 4)
    mask = dense_mask(pai.prunable_parameters(model, include_classifier=True))
    report = mask_report(model, mask, inputs)
    assert report["effective_sparsity"] is None
    assert "result 1 of aten.max" in report["effective_undefined"]


@pytest.mark.parametrize("build", [Branches, SqueezeExcite, Attention, circular])
def test_the_default_type_of_torch_does_not_matter(build: Callable[[], nn.Module]) -> None:
    shapes = {Branches: (2, 8, 8), SqueezeExcite: (2, 4, 4), Attention: (3, 3), circular: (2, 3, 4)}
    model, mask, inputs = prepared(build, shapes[build], 0.3, 0)
    expected = effective_kept(model, mask, inputs)
    torch.set_default_dtype(torch.float64)
    try:
        found = effective_kept(model, mask, inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[name], keep) for name, keep in expected.items())


def test_the_layer_that_cuts_a_chain_is_named() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)
    )
    mask = dense_mask(pai.prunable_parameters(model, include_classifier=True))
    for name, kept in (("0.weight", 0), ("2.weight", 1)):  # unit 0 is all there is; 2 wants unit 1
        mask[name][:] = False
        mask[name][kept, kept] = True
    report = mask_report(model, mask, torch.zeros(1, 4))
    assert report["cut_at"] == "2.weight"
    assert report["collapsed_layers"] == []
    assert report["dead_layers"] == ["0.weight", "2.weight", "4.weight", "5.weight"]


def test_a_dead_branch_does_not_cut_a_residual_network_but_both_do() -> None:
    model = thin_resnet(num_classes=3, in_channels=2, depth=8, width=4)
    mask = dense_mask(pai.prunable_parameters(model))
    inputs = torch.zeros(1, 2, 8, 8)
    mask["stages.1.0.conv1.weight"][:] = False
    report = mask_report(model, mask, inputs)
    assert report["cut_at"] is None
    assert report["dead_layers"] == ["stages.1.0.conv2.weight"]
    mask["stages.1.0.shortcut.0.weight"][:] = False
    assert mask_report(model, mask, inputs)["cut_at"] == "stages.1.0.shortcut.0.weight"


def test_an_effective_sparsity_is_reached_with_the_fewest_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs, connectivity = torch.zeros(1, 6), Connectivity(model, torch.zeros(1, 6))

    def score(*arguments: object, **options: object) -> dict[str, Tensor]:
        return {n: p.detach().abs() for n, p in pai.prunable_parameters(model).items()}

    def effective(mask: dict[str, Tensor]) -> int:
        return sum(int(keep.sum()) for keep in effective_kept(model, mask, inputs).values())

    masks = [find_mask(model, [], score, sparsity=1 - kept / 112) for kept in range(1, 113)]
    truth = next(i + 1 for i, mask in enumerate(masks) if effective(mask) >= 11)
    mask, reached = reach_effective(lambda s: select(score(), s), connectivity, 0.9)
    assert (reached.wanted, reached.kept, reached.effective) == (11, truth, effective(mask))
    assert truth > 11
    dense, all_of_them = reach_effective(lambda s: select(score(), s), connectivity, 0.0)
    assert (
        all_of_them.kept
        == all_of_them.effective
        == 112
        == sum(int(k.sum()) for k in dense.values())
    )


def test_in_a_single_layer_every_count_is_reached_and_the_masks_tried_are_counted() -> None:
    model = nn.Linear(5, 4)
    connectivity = Connectivity(model, torch.zeros(1, 5))
    scores = {"weight": torch.rand(4, 5)}
    for wanted in range(1, 21):
        asked: list[float] = []

        def choose(sparsity: float, asked: list[float] = asked) -> dict[str, Tensor]:
            asked.append(sparsity)
            return select(scores, sparsity)

        mask, reached = reach_effective(choose, connectivity, 1 - wanted / 20)
        assert reached.wanted == reached.effective == reached.kept == int(mask["weight"].sum())
        assert reached.wanted == wanted
        assert reached.tried == len(asked) - 1 == len(set(asked[1:]))  # the first is the dense one
        # each look halves the candidates: all counts from the wanted one to all weights
        assert reached.tried <= math.ceil(math.log2(20 - wanted + 1))


def test_a_run_prunes_to_an_effective_sparsity(tmp_path: Path) -> None:
    options = ("sparsity=0.97", "sparsity_is=effective", "scorer=random", "training.epochs=0")
    record = tiny_run(tmp_path, *options)
    target, mask = record["scoring"]["effective_target"], record["mask"]
    assert target["wanted"] == round(0.03 * mask["prunable"]) <= target["effective"]
    assert mask["effective_sparsity"] == 1 - target["effective"] / mask["prunable"]
    assert target["kept"] == mask["kept"] > target["effective"]


@pytest.mark.parametrize("override", ["schedule=linear", "scorer=synflow"])
def test_an_effective_target_needs_scores_that_do_not_depend_on_it(override: str) -> None:
    with pytest.raises(ConfigError, match=r"sparsity_is: effective .* use schedule=oneshot"):
        check("sparsity_is=effective", override)


def test_the_cut_is_named_where_layers_follow_each_other_directly() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1))
    names = ("0.weight", "1.weight", "2.weight")
    for cut in names:
        mask = {n: torch.full(model.get_parameter(n).shape, n != cut) for n in names}
        assert Connectivity(model, torch.zeros(1, 2, 4, 4)).paths(mask).cut_at == cut


def test_a_layer_that_is_not_used_has_no_effect() -> None:
    class Spare(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self[0](x)
            return out

    model = Spare(nn.Linear(3, 2), nn.Linear(3, 4))
    mask = {n: torch.ones_like(model.get_parameter(n), dtype=torch.bool)
            for n in ("0.weight", "1.weight")}  # fmt: skip
    effective = Connectivity(model, torch.zeros(1, 3)).paths(mask).effective
    assert effective["0.weight"].all()
    assert effective["1.weight"].shape == (4, 3) and not effective["1.weight"].any()


@pytest.mark.parametrize("place", ["surrogate", "Connectivity._pull"])
def test_a_rule_that_does_not_fit_is_named(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise TypeError("an odd operand")

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    connectivity = Connectivity(model, torch.zeros(1, 3))
    mask = {"0.weight": torch.ones(4, 3, dtype=torch.bool)}
    monkeypatch.setattr(f"pai.masking.effective.{place}", fails)
    message = r"^the rule of aten\.\S+ does not apply: an odd operand$"
    with pytest.raises(NotDefinedError, match=message):
        connectivity.paths(mask)
