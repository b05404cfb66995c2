"""Opening ``nn.MultiheadAttention``, whose projections are not modules that a hook could see.

Inside the block the projections are taken outside and torch's own function gets their results with
identity matrices in place of the weights: the same values and gradients with every option of the
layer, at the price of four multiplications by the identity.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Watch = Callable[[str, nn.Module, Tensor, Tensor, slice], Tensor]
_LAYER = nn.Linear(1, 1)  # stands for the projections: the rule of nn.Linear applies to them


@contextmanager
def open_attention(model: nn.Module, names: Mapping[int, str], watch: Watch) -> Iterator[None]:
    """Report the uses of packed projections, by name from ``id(parameter)``, to ``watch``."""
    layers = [module for module in model.modules() if type(module) is nn.MultiheadAttention]
    layers = [module for module in layers if "forward" not in module.__dict__]
    try:
        for layer in layers:
            layer.forward = types.MethodType(_forward(names, watch), layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _forward(names: Mapping[int, str], watch: Watch) -> Callable[..., Any]:
    def project(weight: Tensor, bias: Tensor | None, x: Tensor, rows: slice) -> Tensor:
        out = F.linear(x, weight[rows], None if bias is None else bias[rows])
        name = names.get(id(weight))
        return out if name is None else watch(name, _LAYER, x, out, rows)

    def packed(layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Any:
        weight, bias, size = layer.in_proj_weight, layer.in_proj_bias, layer.embed_dim
        if query is key is value:
            return project(weight, bias, query, slice(None)).chunk(3, -1)
        return [
            project(weight, bias, x, slice(k * size, (k + 1) * size))
            for k, x in enumerate((query, key, value))
        ]

    def separate(layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Any:
        weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        biases = [None] * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
        return [
            project(weight, bias, x, slice(None))
            for weight, bias, x in zip(weights, biases, (query, key, value), strict=True)
        ]

    def forward(
        self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, *args: Any,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if query.dim() != 3:  # a single sequence without a batch axis
            return nn.MultiheadAttention.forward(self, query, key, value, *args, **options)
        same = query is key is value
        if not self.batch_first:
            query = query.transpose(0, 1)
            key, value = (query, query) if same else (key.transpose(0, 1), value.transpose(0, 1))
        split = packed if self._qkv_same_embed_dim else separate
        projected = [x.transpose(0, 1) for x in split(self, query, key, value)]
        out, weights = _attend(self, projected, *args, **options)
        out = self.out_proj(out.transpose(0, 1))
        return out if self.batch_first else out.transpose(0, 1), weights

    return forward


def _attend(
    layer: nn.MultiheadAttention,
    projected: list[Tensor],
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend with identity projections; sequence first."""
    query, key, value = projected
    identity = torch.eye(layer.embed_dim, dtype=query.dtype, device=query.device)
    return F.multi_head_attention_forward(
        query, key, value, layer.embed_dim, layer.num_heads, None, None,
        layer.bias_k, layer.bias_v, layer.add_zero_attn, 0.0, identity, None,
        training=False, key_padding_mask=key_padding_mask, need_weights=need_weights,
        attn_mask=attn_mask, use_separate_proj_weight=True, q_proj_weight=identity,
        k_proj_weight=identity, v_proj_weight=identity,
        average_attn_weights=average_attn_weights, is_causal=is_causal,
    )  # fmt: skip
