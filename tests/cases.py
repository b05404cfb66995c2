"""Toy problems in float64 for comparison with dense autograd.

``piecewise_linear`` marks networks that are piecewise affine in every single weight: there the
diagonal of the Hessian is that of the GGN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pai.models.gnn import gat, gcn
from pai.models.gpt import gpt

CLASSES = 3
SAMPLES = 5


@dataclass(frozen=True)
class Case:
    """A network with data; ``slow`` names parameters no per-sample rule covers.

    Inputs are real numbers, or whole numbers below ``tokens``. ``positions`` are the predictions
    of each sample, if it has several.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    piecewise_linear: bool = False
    slow: tuple[str, ...] = ()
    tokens: int = 0
    positions: tuple[int, ...] = ()

    def problem(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Return model (eval mode, all random), inputs and targets, always the same."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build().double().eval()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    assert module.running_mean is not None and module.running_var is not None
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
            for parameter in model.parameters():
                if not parameter.any():  # biases of attention begin at zero
                    nn.init.normal_(parameter)
            inputs = torch.randn(SAMPLES, *self.shape, dtype=torch.float64)
            if self.tokens:
                inputs = torch.randint(0, self.tokens, (SAMPLES, *self.shape))
            targets = torch.randint(0, CLASSES, (SAMPLES, *self.positions))
        return model, inputs, targets


def _mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 5), activation, nn.Linear(5, 3))


def _cnn(conv: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(
        conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(channels, CLASSES),
    )  # fmt: skip


class Residual(nn.Module):
    """In-place residual addition and in-place ReLU, max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.norm(self.conv(x))
        out += x
        out = F.relu_(out)
        return self.head(self.pool(out).mean((2, 3)))


class InPlaceRightAfterConvolution(nn.Module):
    """The convolution's own output is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv(x))
        out = self.conv2(out)
        out *= 2
        return self.head(out.relu_().mean((2, 3)))


class Shared(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class Tied(nn.Module):
    """Two layers with one weight, one of them used functionally as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.c = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.head(torch.tanh(self.c(x)) + F.linear(x, self.c.weight))


class Sequence(nn.Module):
    """Linear layers over a sequence axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.second(F.relu(self.first(x)))).mean(1))


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself: one packed projection."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


class CrossAttention(nn.Module):
    """Attention between two sequences, sequence axis first, masked, twice with one layer."""

    def __init__(self, key_size: int = 4, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.other = nn.Linear(3, key_size)
        self.attention = nn.MultiheadAttention(4, 2, **options)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.embed(x).transpose(0, 1), self.other(x).transpose(0, 1)
        mask = torch.ones(len(key), len(key), dtype=torch.bool, device=key.device).triu(1)
        once, weights = self.attention(query, key, key, attn_mask=mask)
        twice, _ = self.attention(once, key, key)
        return self.head((query + twice).mean(0)) + weights.mean()


class SequenceFirst(nn.Module):
    """Linear layers that see the sequence axis before the batch axis: the plain rule is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(x.transpose(0, 1))).mean(0))


class Language(nn.Module):
    """Embedding and head with one weight, attention layers of torch in between."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 4, padding_idx=None if tied else 1)
        self.mix = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.head = nn.Linear(4, CLASSES, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(tokens)).mean(1))


class StandardisedConv2d(nn.Conv2d):
    """A convolution that transforms its weight: the plain rule would be wrong."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class NonContiguous(nn.Module):
    """Transposed and strided views between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.conv = nn.Conv1d(5, 4, 3, padding=1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.transpose(1, 2)))
        x = F.relu(self.conv(x[:, :, ::2]))
        return self.head(x.mean(2))


class ChannelsLast(nn.Module):
    """A convolution that receives a channels_last tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3, stride=2, padding=1)
        self.second = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x.contiguous(memory_format=torch.channels_last)))
        return self.head(self.second(x).mean((2, 3)))


class SharedTable(nn.Module):
    """A linear layer on a table, the same for all samples: its input has no axis of samples."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 12).view(1, 3, 4))
        self.on_table = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x * self.on_table(self.table)).mean(1))


def _language(*, tied: bool) -> nn.Module:
    model = gpt(
        vocab_size=CLASSES, context_length=4, embed_dim=4, depth=1, num_heads=2, mlp_ratio=1.5,
        tie_embeddings=tied,
    )  # fmt: skip
    with torch.no_grad():  # at 0.02 nearly nothing depends on anything
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    return model


def _graph(build: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """A network on a ring of six nodes with a chord.

    With one-hot features a weight meets one node alone, and squares of sums over nodes are sums of
    squares: a rule that takes nodes for samples is right for a single sample.
    """
    pairs = [(v, (v + 1) % 6) for v in range(6)] + [(0, 3)]
    edges = torch.tensor(pairs + [(b, a) for a, b in pairs]).T
    return build(num_classes=CLASSES, node_features=torch.eye(6), edge_index=edges, **options)


def _conv(name: str, layer: Callable[[], nn.Module], channels: int) -> Case:
    return Case(name, lambda: _cnn(layer(), channels), (4, 6, 6), piecewise_linear=True)


CASES = [
    Case("mlp_relu", lambda: _mlp(nn.ReLU()), (4,), piecewise_linear=True),
    Case("mlp_tanh", lambda: _mlp(nn.Tanh()), (4,)),
    _conv("conv_four_positions", lambda: nn.Conv2d(4, 3, 5), 3),
    _conv("conv_one_position", lambda: nn.Conv2d(4, 8, 6, groups=2), 8),
    _conv("conv_plain", lambda: nn.Conv2d(4, 3, 3), 3),
    _conv("conv_stride_padding", lambda: nn.Conv2d(4, 3, 3, stride=2, padding=(1, 2)), 3),
    _conv("conv_same", lambda: nn.Conv2d(4, 3, (4, 3), padding="same"), 3),
    _conv("conv_dilation", lambda: nn.Conv2d(4, 3, 3, dilation=2, padding=2), 3),
    _conv("conv_groups", lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), 6),
    _conv("conv_depthwise", lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2, bias=False), 8),
    _conv("conv_reflect", lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), 3),
    _conv("conv_circular", lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), 3),
    Case(
        "conv1d",
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3, stride=2, dilation=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(12, CLASSES),
        ),
        (3, 8),
        piecewise_linear=True,
    ),
    Case("residual", Residual, (2, 6, 6), piecewise_linear=True),
    Case("in_place", InPlaceRightAfterConvolution, (2, 5, 5), piecewise_linear=True),
    Case("shared", Shared, (4,)),
    Case("tied", Tied, (4,), slow=("c.weight",)),
    Case("sequence", Sequence, (3, 4)),
    Case("attention", Attention, (3, 3)),
    Case("attention_bias_kv", lambda: Attention(add_bias_kv=True, add_zero_attn=True), (3, 3)),
    Case("attention_cross", CrossAttention, (3, 3)),
    Case("attention_sizes", lambda: CrossAttention(3, kdim=3, vdim=3, bias=False), (3, 3)),
    Case("attention_sizes_biases", lambda: CrossAttention(3, kdim=3, vdim=3), (3, 3)),
    Case("sequence_first", SequenceFirst, (3, 3), slow=("embed.weight",)),
    Case("embedding", lambda: Language(tied=False), (4,), tokens=CLASSES),
    Case("embedding_tied", lambda: Language(tied=True), (4,), tokens=CLASSES),
    Case("gpt", lambda: _language(tied=False), (4,), tokens=CLASSES, positions=(4,)),
    Case("gpt_tied", lambda: _language(tied=True), (4,), tokens=CLASSES, positions=(4,)),
    Case(
        "gcn", lambda: _graph(gcn, width=4), (), tokens=6,
        piecewise_linear=True, slow=("layers.0.linear.weight", "layers.1.linear.weight"),
    ),
    Case(
        "gat", lambda: _graph(gat, width=3, heads=2), (), tokens=6,
        slow=("layers.0.linear.weight", "layers.1.linear.weight"),
    ),
    Case("shared_table", SharedTable, (3, 4), slow=("on_table.weight",)),
    Case("non_contiguous", NonContiguous, (4, 5), piecewise_linear=True),
    Case("channels_last", ChannelsLast, (4, 6, 6), piecewise_linear=True),
    Case(
        "standardised",
        lambda: _cnn(StandardisedConv2d(4, 3, 3), 3),
        (4, 5, 5),
        slow=("0.weight",),
    ),
    Case(
        "conv_transpose",
        lambda: _cnn(nn.ConvTranspose2d(4, 3, 3, stride=2), 3),
        (4, 3, 3),
        piecewise_linear=True,
        slow=("0.weight",),
    ),
]  # fmt: skip


def case_named(name: str) -> Case:
    """Return the case of that name."""
    return next(case for case in CASES if case.name == name)
