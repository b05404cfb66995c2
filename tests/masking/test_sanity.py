"""Sanity checks: budgets stay, distributions are the stated ones, weights are the right ones."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import check, tiny_run
from torch import Tensor

from pai.errors import ConfigError
from pai.masking.sanity import RandomSameBudget, Shuffle

CHOICES = ["none", "shuffle", "random_same_budget", "reinit", "invert"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One untrained run of each check, and one of another seed."""
    folder = tmp_path_factory.mktemp("sanity")
    for choice in CHOICES:
        tiny_run(folder / choice, "training.epochs=0", f"sanity={choice}", "scorer=snip")
    return folder


def masks(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "mask.safetensors")


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "model.safetensors")


def counts(mask: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(keep.sum()) for name, keep in mask.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("choice", ["shuffle", "random_same_budget"])
def test_the_budgets_stay_and_the_places_change(choice: str, runs: Path) -> None:
    own, altered = masks(runs / "none"), masks(runs / choice)
    assert counts(altered) == counts(own)
    assert not same(altered, own)
    assert not same(masks(runs / "shuffle"), masks(runs / "random_same_budget"))


@pytest.mark.parametrize("choice", ["shuffle", "random_same_budget"])
def test_weights_at_the_new_places_are_the_initial_ones(choice: str, runs: Path) -> None:
    mask, found = masks(runs / choice), weights(runs / choice)
    own = weights(runs / "none")
    for name, keep in mask.items():
        assert torch.all(found[name][keep] != 0)
        assert torch.all(found[name][~keep] == 0)
        both = keep & masks(runs / "none")[name]
        assert torch.equal(found[name][both], own[name][both])
    assert torch.equal(found["fc.weight"], own["fc.weight"])


@pytest.mark.parametrize("alter", [Shuffle(), RandomSameBudget()])
def test_every_subset_of_the_right_size_is_equally_likely(alter: Any) -> None:
    mask = {"a": torch.tensor([[True, False], [True, False]]), "b": torch.ones(2, dtype=torch.bool)}
    found: Counter[tuple[bool, ...]] = Counter()
    for seed in range(1200):
        altered = alter.mask(mask, seed)
        assert altered["b"].all()
        found[tuple(altered["a"].flatten().tolist())] += 1
    assert len(found) == 6
    statistic = sum((n - 200) ** 2 / 200 for n in found.values())
    assert statistic < 20.5  # chi-squared, 5 degrees of freedom: 0.1 %


@pytest.mark.parametrize("alter", [Shuffle(), RandomSameBudget()])
def test_a_mask_depends_on_the_seed_alone(alter: Any) -> None:
    mask = {"a": torch.arange(50) < 10}
    assert same(alter.mask(mask, 3), alter.mask(mask, 3))
    assert not same(alter.mask(mask, 3), alter.mask(mask, 4))


def test_random_masks_of_two_sparsities_are_nested() -> None:
    few, many = ({"a": torch.arange(50) < kept} for kept in (10, 30))
    assert torch.all(RandomSameBudget().mask(few, 0)["a"] <= RandomSameBudget().mask(many, 0)["a"])


def test_new_weights_under_the_same_mask(runs: Path) -> None:
    assert same(masks(runs / "reinit"), masks(runs / "none"))
    found, own = weights(runs / "reinit"), weights(runs / "none")
    for name, keep in masks(runs / "none").items():
        assert torch.all(found[name][~keep] == 0)
        assert torch.all(found[name][keep] != own[name][keep])
    assert not torch.equal(found["fc.weight"], own["fc.weight"])
    assert torch.all(found["bn1.running_var"] != 1)  # warmed up
    assert not torch.equal(found["bn1.running_var"], own["bn1.running_var"])


def test_inverted_scores_keep_what_would_go_first(tmp_path: Path) -> None:
    half = ("training.epochs=0", "sparsity=0.5", "scope=layer")
    tiny_run(tmp_path / "own", *half)
    tiny_run(tmp_path / "inverted", *half, "sanity=invert")
    own, inverted = masks(tmp_path / "own"), masks(tmp_path / "inverted")
    assert counts(own) == counts(inverted)  # all sizes are even
    assert all(torch.equal(inverted[name], ~keep) for name, keep in own.items())


def test_inverted_scores_in_every_round_of_a_schedule(tmp_path: Path) -> None:
    rounds = ("training.epochs=0", "sparsity=0.5", "scope=layer", "schedule=linear")
    tiny_run(tmp_path / "own", *rounds)
    tiny_run(tmp_path / "inverted", *rounds, "sanity=invert")
    own, inverted = masks(tmp_path / "own"), masks(tmp_path / "inverted")
    assert all(torch.equal(inverted[name], ~keep) for name, keep in own.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sanity=shufle"], ["sanity: 'shufle' is not a choice", "did you mean 'shuffle'?"]),
        (["sanity=invert", "scorer=none"], ["sanity: scorer=none", "sanity=none"]),
        (
            ["sanity=shuffle", "scope=2:4", "sparsity=0.5"],
            ["sanity: this check", "2:4", "scorer=random"],
        ),
    ],
)
def test_checks_without_a_meaning_are_refused(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check("logger=none", *arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("alter", [Shuffle(), RandomSameBudget()])
def test_layers_of_the_same_shape_are_altered_independently(alter: Any) -> None:
    layer = torch.arange(100) < 30
    altered = alter.mask({"first": layer, "second": layer.clone()}, 0)
    assert not torch.equal(altered["first"], altered["second"])
