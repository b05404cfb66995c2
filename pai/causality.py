"""Whether a language model predicts a token without having seen it."""

import torch
from torch import nn

_ROUNDING = 1e-5  # of the spread of the logits, far above what another order of sums changes


def sees_the_future(model: nn.Module, vocab_size: int, length: int) -> bool:
    """Return whether a logit depends on a token behind its own position.

    Two sequences of different tokens are run, their second half is replaced by other tokens, and
    the logits of the first half are compared.

    Args:
        model: in eval mode, gives logits ``[B, V, L]`` for tokens ``[B, L]``.
        vocab_size: V.
        length: L.
    """
    half = (length + 1) // 2
    tokens = torch.arange(1, 2 * length + 1).view(2, length) % vocab_size
    changed = tokens.clone()
    changed[0, half:] = (tokens[0, half : half + 1] + 1) % vocab_size  # one token: another sum
    changed[1, half:] = (tokens[1, half:] + 1) % vocab_size  # another token at each position
    with torch.no_grad():
        before, after = (model(each)[..., :half].double() for each in (tokens, changed))
    spread = before.max() - before.min()
    return bool((before - after).abs().max() > _ROUNDING * spread)
