"""A decoder-only transformer in the manner of GPT-2 (Radford et al. 2019), small by default.

Legend: B sequences, L positions, D width, H heads, V tokens of the vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STD = 0.02  # of initial weights, GPT-2's


class CausalAttention(nn.Module):
    """Multi-head attention in which each position sees itself and those before it."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, L, D]`` for ``[B, L, D]``."""
        split = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)  # [B, H, L, D/H]
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a two-layer GELU network, each behind a LayerNorm and with a shortcut."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(mlp_ratio * embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attention = CausalAttention(embed_dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, L, D]`` for ``[B, L, D]``."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class GPT(nn.Module):
    """Embeddings of tokens and positions, blocks, a LayerNorm, and a head without bias."""

    def __init__(
        self, vocab_size: int, context_length: int, embed_dim: int, depth: int, num_heads: int,
        mlp_ratio: float, dropout: float, tie_embeddings: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, embed_dim)
        self.positions = nn.Embedding(context_length, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, vocab_size, bias=False)
        self._initialise(depth)
        if tie_embeddings:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``[B, V, L]`` for token numbers ``[B, L]``, L at most the context."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(positions))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)

    def _initialise(self, depth: int) -> None:
        """Normals of 0.02, of ``0.02 / sqrt(2 depth)`` where a branch joins its shortcut."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                joins = name.endswith(("proj", "fc2"))
                nn.init.normal_(module.weight, std=_STD / (2 * depth) ** 0.5 if joins else _STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def gpt(
    *,
    vocab_size: int,
    context_length: int,
    embed_dim: int = 96,
    depth: int = 3,
    num_heads: int = 4,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
    tie_embeddings: bool = True,
) -> GPT:
    """Build the transformer: pre-LN, learnt positions, GELU, biases (as GPT-2).

    Args:
        vocab_size: tokens.
        context_length: positions, the longest sequence.
        embed_dim: width.
        depth: blocks.
        num_heads: heads of each block's attention.
        mlp_ratio: hidden units of each block's network per unit of width.
        dropout: probability, on embeddings, attention and both branches.
        tie_embeddings: the head's weight is the embedding of tokens (Press and Wolf 2017, arXiv
            1608.05859). It then counts as the classifier and stays dense unless
            ``include_classifier``.

    Raises:
        ValueError: an option is out of range, or ``num_heads`` does not divide ``embed_dim``.
    """
    for option, value in (("embed_dim", embed_dim), ("depth", depth), ("num_heads", num_heads)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if embed_dim % num_heads:
        raise ValueError(f"num_heads must divide embed_dim, {embed_dim}, got {num_heads}")
    if not mlp_ratio * embed_dim >= 1:
        raise ValueError(f"mlp_ratio must leave at least one hidden unit, got {mlp_ratio}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    return GPT(
        vocab_size, context_length, embed_dim, depth, num_heads, mlp_ratio, dropout, tie_embeddings
    )
