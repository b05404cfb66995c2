import math

import pytest
import torch
from torch import nn

from pai.models.gpt import GPT, gpt
from pai.prunable import prunable_parameters


def model(*, tied: bool = True) -> GPT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return gpt(
            vocab_size=11, context_length=6, embed_dim=8, depth=2, num_heads=2, tie_embeddings=tied
        ).eval()


def test_a_position_sees_itself_and_those_before_it_alone() -> None:
    network, tokens = model(), torch.randint(0, 11, (3, 6))
    with torch.no_grad():
        logits = network(tokens)
        assert logits.shape == (3, 11, 6)
        for changed in range(6):
            other = tokens.clone()
            other[:, changed] = (other[:, changed] + 1) % 11
            moved = (network(other) - logits).abs().amax((0, 1)) > 1e-6
            assert not moved[:changed].any() and moved[changed:].all()
        torch.testing.assert_close(network(tokens[:, :4]), logits[:, :, :4])  # shorter ones


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_the_classifier_and_a_tied_embedding_stays_dense_with_it(tied: bool) -> None:
    network = model(tied=tied)
    inner = {
        f"blocks.{k}.{name}.weight" for k in range(2)
        for name in ("attention.qkv", "attention.proj", "fc1", "fc2")
    }  # fmt: skip
    assert set(prunable_parameters(network)) == inner
    everything = prunable_parameters(network, include_classifier=True)
    head = "tokens.weight" if tied else "head.weight"  # under its first name
    assert everything.keys() - inner == {head}
    assert everything[head] is network.head.weight
    assert (network.head.weight is network.tokens.weight) is tied


@torch.no_grad()
def test_it_starts_as_gpt2_does() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = gpt(vocab_size=300, context_length=50, embed_dim=64, depth=8)
        tokens, targets = torch.randint(0, 300, (2, 8, 50))
    first, joins = (network.blocks[0].get_parameter(f"fc{k}.weight") for k in (1, 2))
    assert float(first.std()) == pytest.approx(0.02, rel=0.1)
    assert float(joins.std()) == pytest.approx(0.02 / 4, rel=0.1)
    assert float(network.head.weight.std()) == pytest.approx(0.02, rel=0.1)
    loss = nn.functional.cross_entropy(network(tokens), targets)
    assert float(loss) == pytest.approx(math.log(300), abs=0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"embed_dim": 0}, {"depth": 0}, {"num_heads": 5}, {"mlp_ratio": 0.0}, {"dropout": 1.0}],
)
def test_options_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}"):
        gpt(vocab_size=3, context_length=2, **wrong)  # type: ignore[arg-type]
