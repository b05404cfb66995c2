"""The rule of each operation, in between the two layers of a network, against brute force."""

import itertools
from collections.abc import Callable

import pytest
import torch
from brute_force import effective_by_brute_force
from torch import Tensor, nn
from torch.nn import functional as F

import pai
from pai.masking import surrogates
from pai.masking.effective import effective_kept
from pai.masking.moves import NotDefinedError

Op = Callable[[Tensor], Tensor]
EVEN = torch.tensor([True, False] * 4)
ORDER, PLACES = torch.tensor([3, 3, 0, 6]), torch.tensor([5, 3, 0, 6])
HOLES = torch.tensor([1.0, 0, 2, -1, 0, 0, 3, 1])
KERNEL = torch.linspace(-1, 1, 18).reshape(2, 1, 3, 3)


def _rows(x: Tensor) -> Tensor:
    return torch.arange(len(x))[:, None]


def _overwritten(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, 2:4] = x[:, 4:6] * 2
    return out


def _filled(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, 2:4] = 0
    out[:, 4] = 1.5
    return out * x.flip(1)


VECTOR: dict[str, Op] = {  # of 8 entries
    "glu": F.glu,
    "softmax": lambda x: x.reshape(-1, 4, 2).softmax(-1).flatten(1),
    "log_softmax": lambda x: x.reshape(-1, 2, 4).log_softmax(1).flatten(1),
    "softmax of single entries": lambda x: torch.cat(
        [x[:, :4, None].softmax(-1).flatten(1), x[:, 4:]], 1
    ),
    "layer_norm": lambda x: F.layer_norm(x.reshape(-1, 4, 2), (2,)).flatten(1),
    "layer_norm, scaled": lambda x: F.layer_norm(x, (8,), HOLES.to(x)),
    "layer_norm of two axes": lambda x: F.layer_norm(x.reshape(-1, 4, 1, 2), (1, 2)).flatten(1),
    "where": lambda x: torch.where(EVEN, x, x.flip(1)),
    "where, a constant": lambda x: torch.where(EVEN, x, 0.0),
    "where, the condition is the input's": lambda x: torch.where(x > 0, 2 * x, x),
    "masked_fill": lambda x: x.masked_fill(EVEN, 0.0) * x.flip(1),
    "masked_fill with a value": lambda x: x.masked_fill(EVEN, 1.5) * x.flip(1),
    "pad": lambda x: F.pad(x[:, 2:], (1, 1)) * x,
    "pad with a value": lambda x: F.pad(x[:, 2:], (1, 1), value=3.0) * x,
    "index": lambda x: x[:, ORDER],
    "index_select": lambda x: x.index_select(1, ORDER),
    "index_put": lambda x: x.index_put((_rows(x), PLACES), x[:, :4]),
    "index_put, a constant": lambda x: x.index_put((_rows(x), PLACES), torch.zeros(()).to(x)),
    "index_add": lambda x: x[:, :7].index_add(1, ORDER, x[:, 4:]),
    "scatter_add": lambda x: x[:, :7].scatter_add(1, ORDER.expand(len(x), 4), x[:, 4:]),
    "scatter_reduce": lambda x: x[:, :7].scatter_reduce(
        1, ORDER.expand(len(x), 4), x[:, 4:], "mean"
    ),
    "constant factor": lambda x: x * HOLES.to(x),
    "boolean factor": lambda x: x * EVEN,
    "factor of whole numbers": lambda x: x * (PLACES.repeat(2) - 3),
    "product": lambda x: x[:, :4] * x[:, 4:],
    "quotient": lambda x: x[:, :4] / (1 + x[:, 4:].exp()),
    "quotient of what may be zero": lambda x: x[:, :4] / (2 + x[:, 4:]),
    "number minus": lambda x: (3 - x) * x.flip(1),
    "number plus zero": lambda x: (x + 0) * x.flip(1),
    "exp": lambda x: x.exp() * x.flip(1),
    "cos": lambda x: x.cos() * x.flip(1),
    "tanh": lambda x: x.tanh() * x.flip(1),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1) * x.flip(1),
    "prelu": lambda x: F.prelu(x, HOLES.to(x).abs() + 0.1) * x.flip(1),
    "hardswish": lambda x: F.hardswish(x) * x.flip(1),
    "logsigmoid": lambda x: F.logsigmoid(x) * x.flip(1),
    "celu": lambda x: F.celu(x) * x.flip(1),
    "sum": lambda x: x[:, :3].sum(1, keepdim=True) * x,
    "mean of all but samples": lambda x: x.reshape(-1, 4, 2).mean((1, 2), keepdim=True)[..., 0] * x,
    "logsumexp": lambda x: x[:, 2:].logsumexp(1, keepdim=True) * x,
    "norm": lambda x: torch.linalg.vector_norm(x[:, 2:5], dim=1, keepdim=True) + 0 * x,
    "var": lambda x: x[:, :3].var(1, keepdim=True) + x[:, 3:],
    "cumsum": lambda x: x.cumsum(1),
    "tril": lambda x: x.reshape(-1, 4, 2).tril().flatten(1),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(3, 1),
    "repeat": lambda x: x.repeat(1, 2),
    "cat": lambda x: torch.cat([x[:, 6:], x[:, :2] * x[:, 2:4]], 1),
    "stack": lambda x: torch.stack([x, x.flip(1)], 1).flatten(1),
    "unbind": lambda x: x.reshape(-1, 2, 4).unbind(1)[1],
    "split": lambda x: x.split([3, 5], 1)[0],
    "diagonal": lambda x: torch.diagonal(x.reshape(-1, 2, 4), dim1=1, dim2=2),
    "matrix product": lambda x: (x.reshape(-1, 4, 2) @ x.reshape(-1, 2, 4)).flatten(1),
    "einsum": lambda x: torch.einsum("bi,bj->bij", x[:, :3], x[:, 3:]).flatten(1),
    "baddbmm": lambda x: torch.baddbmm(
        x.reshape(-1, 2, 4)[:, :, :2], x.reshape(-1, 2, 4), x.reshape(-1, 4, 2)
    ).flatten(1),
    "copy into a slice": _overwritten,
    "fill of a slice": _filled,
    "new zeros": lambda x: torch.cat([torch.zeros_like(x), x], 1) * torch.cat([x, x], 1),
    "new ones": lambda x: torch.cat([torch.ones_like(x), x], 1) * torch.cat([x, x], 1),
    "changed type": lambda x: x.to(torch.float32).double(),
}  # fmt: skip

IMAGE: dict[str, Op] = {  # of 4 channels, 6 x 6
    "group_norm": lambda x: F.group_norm(x, 2),
    "group_norm, scaled": lambda x: F.group_norm(x, 2, HOLES[:4].to(x)),
    "instance_norm": F.instance_norm,
    "batch_norm": lambda x: F.batch_norm(x, torch.ones(4).to(x), torch.ones(4).to(x)),
    "batch_norm, scaled": lambda x: F.batch_norm(
        x, torch.ones(4).to(x), torch.ones(4).to(x), HOLES[:4].to(x), torch.ones(4).to(x)
    ),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool, the rest left out": lambda x: F.avg_pool2d(x[..., :5, :5], 2),
    "avg_pool, incomplete windows": lambda x: F.avg_pool2d(x, 4, 4, ceil_mode=True),
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, 4),
    "adaptive_avg_pool to two": lambda x: F.adaptive_avg_pool2d(x, 2),
    "avg_pool3d": lambda x: F.avg_pool3d(x[:, :3, None], (1, 2, 3)).flatten(1, 2),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x[:, None], (4, 2, 3)).flatten(1, 2),
    "upsample": lambda x: F.interpolate(x[..., ::2, ::2], scale_factor=2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "unfold": lambda x: F.unfold(x, 3, stride=2).unflatten(2, (2, 2)),
    "fold": lambda x: F.fold(x.flatten(2)[:, :, :9], 4, 2, stride=1),
    "reflection_pad": lambda x: F.pad(x, (2, 1, 1, 2), mode="reflect"),
    "replication_pad": lambda x: F.pad(x, (2, 1, 1, 2), mode="replicate"),
    "zero pad": lambda x: F.pad(x, (2, -1, 1, -2)),
    "convolution with constants": lambda x: F.conv2d(x[:, :2], KERNEL.to(x), groups=2),
    "transposed": lambda x: x.transpose(2, 3),
}  # fmt: skip


class Between(nn.Module):
    """An operation between two layers; its results are read out by the second."""

    def __init__(self, first: nn.Module, op: Op, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.op = first.double(), op
        between = op(self.first(torch.ones(2, *shape, dtype=torch.float64)))
        self.second: nn.Module = nn.Linear(between.shape[1], 3, bias=False).double()
        if between.ndim == 4:
            self.second = nn.Conv2d(between.shape[1], 3, 2, stride=2, bias=False).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.op(self.first(x)))
        return out


def network(
    op: Op, *, image: bool, density: float, seed: int
) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(seed)
    first = nn.Conv2d(2, 4, 3, padding=1, bias=False) if image else nn.Linear(5, 8, bias=False)
    model = Between(first, op, (2, 6, 6) if image else (5,)).eval()
    parameters = pai.prunable_parameters(model, include_classifier=True)
    mask = {name: torch.rand(p.shape) < density for name, p in parameters.items()}
    pai.apply_mask(model, mask)
    return model, mask


@pytest.mark.parametrize(
    ("name", "op", "image"),
    [(name, op, False) for name, op in VECTOR.items()]
    + [(name, op, True) for name, op in IMAGE.items()],
    ids=[*VECTOR, *IMAGE],
)
def test_the_rule_of_each_operation_agrees_with_brute_force(name: str, op: Op, image: bool) -> None:
    partly = False
    for seed, density in enumerate((0.15, 0.25, 0.4) if not image else (0.05, 0.15)):
        model, mask = network(op, image=image, density=density, seed=seed)
        inputs = torch.rand(2, *((2, 6, 6) if image else (5,)), dtype=torch.float64) + 0.5
        truth = effective_by_brute_force(model, mask, inputs)
        found = effective_kept(model, mask, inputs)
        for layer, keep in truth.items():
            assert torch.equal(found[layer], keep), (layer, density)
            partly |= bool(keep.any()) and not torch.equal(keep, mask[layer])
    assert partly, "neither all nor nothing should be effective somewhere, or the test sees nothing"


@pytest.mark.parametrize(
    ("maximum", "average"),
    [
        (lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.avg_pool2d(x, 3, 2, 1)),
        (lambda x: F.max_pool2d(x[..., :5, :5], 2), lambda x: F.avg_pool2d(x[..., :5, :5], 2)),
        (
            lambda x: F.max_pool2d(x, 4, 3, ceil_mode=True),
            lambda x: F.avg_pool2d(x, 4, 3, ceil_mode=True),
        ),
        (
            lambda x: F.max_pool3d(x[:, None], 2, padding=(1, 0, 0)).flatten(1, 2),
            lambda x: F.avg_pool3d(x[:, None], 2, padding=(1, 0, 0)).flatten(1, 2),
        ),
        (lambda x: x.amax((2, 3), keepdim=True), lambda x: x.mean((2, 3), keepdim=True)),
        (lambda x: x.max(2, keepdim=True).values, lambda x: x.sum(2, keepdim=True)),
        (lambda x: x.amin(1, keepdim=True), lambda x: x.mean(1, keepdim=True)),
    ],
)
def test_a_maximum_connects_what_an_average_of_the_same_entries_does(
    maximum: Op, average: Op
) -> None:
    inputs = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    found = []
    for op in (maximum, average):
        model, mask = network(_roomy(op), image=True, density=0.1, seed=1)
        found.append(effective_kept(model, mask, inputs))
    assert all(torch.equal(found[0][name], keep) for name, keep in found[1].items())
    assert any(not torch.equal(found[0][name], keep) for name, keep in mask.items())


def _roomy(op: Op) -> Op:
    """Repeat the resulting image until the second layer, a window of 2 x 2, finds room."""
    return lambda x: op(x).repeat(1, 1, *(2 if size < 2 else 1 for size in op(x).shape[2:]))


def test_strides_may_be_renamed_and_nothing_else() -> None:
    rule, aten = surrogates.surrogate, torch.ops.aten
    for shape in ((1, 3, 1), (1, 1), (5,)):  # strides of axes of length 1 say nothing
        x = torch.rand(shape)
        assert rule(aten.as_strided.default, (x, list(shape), [7] * len(shape)), {}) is x
    for before, after in (((2, 3), [2, 3]), ((6,), [3]), ((1, 4), [4, 1]), ((2, 2), [2, 2])):
        with pytest.raises(NotDefinedError, match=r"^as_strided that does more than rename"):
            rule(aten.as_strided.default, (torch.rand(before), after, [1] * len(after)), {})


def test_both_branches_and_a_condition_that_depends_on_the_input_connect() -> None:
    rule, where = surrogates.surrogate, torch.ops.aten.where.self
    for bits in itertools.product((0.0, 1.0), repeat=3):
        condition, a, b = (torch.full((2,), bit) for bit in bits)
        assert torch.equal(rule(where, (condition, a, b), {}) > 0, (condition + a + b) > 0)


def test_what_is_added_around_is_zero_unless_a_value_is_given() -> None:
    pad = torch.ops.aten.constant_pad_nd.default
    for value, around in (((), 0), ((0.0,), 0), ((-2.5,), 1)):
        out = surrogates.surrogate(pad, (torch.ones(1), [1, 2], *value), {})
        assert out.tolist() == [around, 1, around, around]


def test_batch_norm_without_training_is_batch_norm_with_fixed_statistics() -> None:
    x, scale = torch.eye(3).reshape(1, 3, 3), torch.tensor([1.0, 0, 1])
    rest = (None, torch.zeros(3), torch.ones(3))
    fixed = torch.ops.aten._native_batch_norm_legit_no_training.default
    (found,) = surrogates.surrogate(fixed, (x, scale, *rest, 0.1, 1e-5), {})
    (truth,) = surrogates.surrogate(
        torch.ops.aten.native_batch_norm.default, (x, scale, *rest, False, 0.1, 1e-5), {}
    )
    assert torch.equal(found, truth) and torch.equal(found, x * scale[None, :, None])


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (lambda x: F.max_pool2d(x, 2, dilation=2), "^max pooling with dilation has no rule$"),
        (lambda x: x[:, x.sum((0, 2, 3)).argsort()], "aten.sort"),
        (lambda x: x.as_strided((len(x), 4, 4, 5), (144, 36, 6, 1)), "rename strides"),
        (
            lambda x: x.flatten(1)[:, x.sum((0, 1, 2)).long()],
            r"^indexing with positions that depend",
        ),
        (
            lambda x: torch.zeros_like(x).scatter_add(1, x.long(), x),
            r"^scattering to positions that depend",
        ),
    ],
)
def test_what_has_no_rule_is_said(op: Op, reason: str) -> None:
    model, mask = network(op, image=True, density=0.5, seed=0)
    with pytest.raises(NotDefinedError, match=reason):
        effective_kept(model, mask, torch.rand(2, 2, 6, 6, dtype=torch.float64))
