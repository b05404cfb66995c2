"""Models of Hugging Face's transformers: the same numbers, prunable by module type."""

import copy
import warnings
from typing import Any

import pytest
import torch

import pai
from pai.causality import sees_the_future
from pai.flops import forward_cost
from pai.models.hf import CausalLanguageModel, hf_model, replace_conv1d
from pai.prunable import classifier, prunable_parameters

transformers = pytest.importorskip("transformers")
GPT2 = {"n_layer": 1, "n_embd": 8, "n_head": 2}
LLAMA = {
    "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 12,
}  # fmt: skip


def build(name: str = "gpt2", options: Any = None, **others: Any) -> CausalLanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = GPT2 if options is None else options
        model = hf_model(vocab_size=13, context_length=6, name=name, options=options, **others)
    return model.eval()


def test_linear_layers_in_the_place_of_conv1d_compute_the_same() -> None:
    config = transformers.GPT2Config(**GPT2, vocab_size=13, n_positions=6)
    original = transformers.GPT2LMHeadModel(config).eval()
    replaced = copy.deepcopy(original)
    replace_conv1d(replaced)
    tokens = torch.randint(0, 13, (3, 6))
    with torch.no_grad():
        torch.testing.assert_close(replaced(tokens).logits, original(tokens).logits)
    assert not [m for m in replaced.modules() if type(m).__name__ == "Conv1D"]


@pytest.mark.parametrize(("name", "options", "count"), [("gpt2", GPT2, 4), ("llama", LLAMA, 7)])
@pytest.mark.parametrize("tied", [True, False])
def test_every_layer_but_the_head_is_prunable(
    name: str, options: dict[str, int], count: int, tied: bool
) -> None:
    model = build(name, options, tie_embeddings=tied)
    assert model(torch.zeros(2, 6, dtype=torch.int64)).shape == (2, 13, 6)
    inner = prunable_parameters(model)
    everything = prunable_parameters(model, include_classifier=True)
    assert len(inner) == count
    (head,) = everything.keys() - inner.keys()
    assert classifier(model) is model.model.get_output_embeddings()
    assert ("embed" in head or "wte" in head) is tied


@pytest.mark.parametrize("name", ["fts", "mts", "gts", "hts", "grasp", "synflow", "snip"])
def test_it_is_scored_by_the_fast_rules(name: str) -> None:
    model, tokens = build(), torch.randint(0, 13, (4, 7))
    batches = [(tokens[:, :-1], tokens[:, 1:])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a slow path is announced by a warning
        scores = pai.load_scorer(name)(model, batches)
    assert all(bool(score.isfinite().all()) and bool(score.any()) for score in scores.values())


@pytest.mark.parametrize("name", ["bert", "electra", "rembert", "opt", "gemma", "bart", "biogpt"])
def test_no_type_sees_the_future_and_no_token_is_padding(name: str) -> None:
    known = transformers.CONFIG_MAPPING[name]()
    small = {
        "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8,
        "num_key_value_heads": 1, "head_dim": 4, "embedding_size": 8, "ffn_dim": 8, "d_model": 8,
        "word_embed_proj_dim": 8, "input_embedding_size": 8, "output_embedding_size": 8,
        "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8,
    }  # fmt: skip
    model = build(name, {key: value for key, value in small.items() if hasattr(known, key)})
    assert not sees_the_future(model, 13, 6)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Embedding)]
    for layer in layers:
        assert layer.padding_idx is None
        assert bool(layer.weight.any(1).all()), "a token that cannot be told from padding"


def test_forward_mode_and_the_count_of_operations_work() -> None:
    model, tokens = build(), torch.randint(0, 13, (2, 6))
    scorer = pai.load_scorer("hd", matrix="gauss_newton", num_probes=2)
    scores = scorer(model, [(tokens, tokens)])
    assert all(bool(score.isfinite().all()) and bool(score.any()) for score in scores.values())
    mask = pai.select({name: score.abs() for name, score in scores.items()}, sparsity=0.5)
    cost = forward_cost(model, mask, tokens)
    linear = 6 * (sum(score.numel() for score in scores.values()) + 8 * 13)
    attention = 2 * 6 * 6 * 8
    assert cost.forward_flops_dense == 2 * (linear + attention)
    assert cost.forward_flops_masked < cost.forward_flops_dense


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gtp2", {}, "did you mean 'gpt2'"), ("bert-base-uncased", {}, "no|type of causal"),
        ("gpt2", {"n_layers": 2}, "no option 'n_layers'"),
        ("gpt2", {"vocab_size": 2}, "vocab_size"),
        ("bert", {"is_decoder": False}, "is_decoder"), ("opt", {"pad_token_id": 1}, "pad_token_id"),
        ("gpt2", {"n_embd": 7, "n_head": 2}, "gpt2|divisible"),
    ],
)  # fmt: skip
def test_the_mistakes_of_a_user_are_named(name: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(name, options)
