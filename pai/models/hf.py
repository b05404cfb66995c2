"""Causal language models of Hugging Face's ``transformers`` by their type, with fresh weights."""

import difflib
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

_SET_BY_THE_RUN = (
    "vocab_size", "max_position_embeddings", "use_cache", "tie_word_embeddings", "pad_token_id",
    "is_decoder",
)  # fmt: skip


class CausalLanguageModel(nn.Module):
    """A model of ``transformers`` that gives logits ``[B, V, L]`` for token numbers ``[B, L]``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, the class axis second."""
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits.transpose(1, 2)

    def get_classifier(self) -> nn.Module:
        """Return the layer that computes the logits."""
        head: nn.Module = self.model.get_output_embeddings()
        return head


def hf_model(
    *,
    vocab_size: int,
    context_length: int,
    name: str,
    tie_embeddings: bool = True,
    options: dict[str, Any] | None = None,
) -> CausalLanguageModel:
    """Build ``AutoModelForCausalLM`` from a fresh configuration: nothing is downloaded.

    GPT-2 and its relatives have ``transformers.pytorch_utils.Conv1D`` layers, which are linear
    layers with the transposed weight. They are replaced by ``nn.Linear`` with the same numbers
    (:func:`replace_conv1d`), so that their weights are prunable and have fast per-sample gradients.
    Types that are encoders unless told otherwise (``bert``) are built as decoders, and no number
    stands for padding: a type's own would be an ordinary token of the text, which could not learn.

    Args:
        vocab_size: tokens.
        context_length: the longest sequence.
        name: a model type of ``transformers`` (``gpt2``, ``llama``, ``opt``), no repository.
        tie_embeddings: the head's weight is the embedding of tokens.
        options: further options of its configuration (``{"n_layer": 2, "n_embd": 64}``); those left
            out are the type's own, the sizes of a large model.

    Raises:
        ValueError: ``transformers`` is not installed, has no such causal language model, or the
            model has not these options; or an option is what the run sets.
    """
    options = options or {}
    for option in options:
        if option in _SET_BY_THE_RUN:
            raise ValueError(f"options must not have {option}: the run or another option sets it")
    try:
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError as error:
        raise ValueError(
            "name: transformers is not installed: pip install 'pai[language]'"
        ) from error
    _check_name(name, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    kind = CONFIG_MAPPING[name]
    known = kind()
    for option in options:
        if not hasattr(known, option):
            raise ValueError(f"options: the configuration of {name} has no option {option!r}")
    try:
        config = kind(**options)
        config.vocab_size, config.max_position_embeddings = vocab_size, context_length
        config.use_cache, config.tie_word_embeddings = False, tie_embeddings
        config.pad_token_id = None
        if hasattr(config, "is_decoder"):
            config.is_decoder = True
        model = AutoModelForCausalLM.from_config(config)
    except (TypeError, AssertionError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(
            f"name {name!r}: transformers cannot build it with options {options}: "
            f"{str(error) or type(error).__name__}"
        ) from error
    replace_conv1d(model)
    return CausalLanguageModel(model)


def _check_name(name: str, known: Collection[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"name must be a type of causal language model of transformers, such as gpt2 or llama, "
            f"got {name!r}{hint}"
        )


def replace_conv1d(model: nn.Module) -> None:
    """Put an ``nn.Linear`` with the transposed weight in the place of each ``Conv1D``, in place.

    ``Conv1D`` computes ``x W + b`` with ``W [I, O]``, ``nn.Linear`` the same with ``W^T [O, I]``.
    """
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Conv1D):
                inputs, outputs = layer.weight.shape
                linear = nn.Linear(inputs, outputs, dtype=layer.weight.dtype)
                with torch.no_grad():
                    linear.weight.copy_(layer.weight.T)
                    linear.bias.copy_(layer.bias)
                setattr(parent, name, linear)
