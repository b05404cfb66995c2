"""``seeds.<part>``: a part of a run with a seed of its own changes, and no other part does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import config, tiny_run
from torch import Tensor, nn

from pai.errors import ConfigError
from pai.schema import check_config
from pai.scorers.base import Scorer
from pai.scorers.magnitude import Magnitude


class Spy(Scorer):
    """Magnitude, which notes what it is given."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def score(self, model: nn.Module, batches: Any, parameters: Any, **rest: Any) -> Any:
        scores = Magnitude().score(model, batches, parameters, **rest)
        state = model.state_dict()
        self.seen = {
            "initialization": torch.cat([value.flatten() for value in scores.values()]),
            "data": torch.cat([images.flatten() for images, _ in batches]),
            "warmup": torch.cat([v for name, v in state.items() if name.endswith("running_mean")]),
            "probes": torch.rand(8, generator=rest["generator"]),
        }
        return scores


def seen(folder: Path, *overrides: str) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    spy = Spy()
    record = tiny_run(folder, "scoring.warmup_batch_size=16", *overrides, scorer=spy)
    return spy.seen, [{"loss": row["train_loss"]} for row in record["history"]]


@pytest.mark.parametrize(
    ("part", "changes"),
    [("initialization", {"initialization", "warmup"}), ("data", {"data", "warmup"}),
     ("probes", {"probes"})],
)  # fmt: skip
def test_only_the_part_with_a_seed_of_its_own_changes(
    part: str, changes: set[str], tmp_path: Path
) -> None:
    base, trained = seen(tmp_path / "base")
    same, same_training = seen(tmp_path / "same", f"+seeds.{part}=0")
    other, other_training = seen(tmp_path / "other", f"+seeds.{part}=5")
    assert all(torch.equal(base[key], same[key]) for key in base)
    assert trained == same_training
    assert {key for key in base if not torch.equal(base[key], other[key])} == changes
    assert (trained != other_training) == (part != "probes")


def test_without_seeds_of_parts_the_key_is_not_there() -> None:
    assert "seeds" not in config()


@pytest.mark.parametrize(
    ("override", "words"), [("+seeds.order=1", "seeds.order"), ("+seeds.data=-1", "seeds.data")]
)
def test_an_unknown_part_or_a_bad_seed_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_config(config(override))


def test_new_weights_of_a_sanity_check_have_the_seed_of_the_weights(tmp_path: Path) -> None:
    weights = {}
    for name, overrides in {
        "base": (), "same": ("+seeds.initialization=0",), "other": ("+seeds.initialization=5",),
        "data": ("+seeds.data=5",),
    }.items():  # fmt: skip
        tiny_run(
            tmp_path / name, "sanity=reinit", "scorer=random", "warmup=none", "training.epochs=0",
            "sparsity=0", *overrides,
        )  # fmt: skip
        stored = load_file(tmp_path / name / "model.safetensors")
        weights[name] = torch.cat([value.flatten() for value in stored.values()])
    assert weights["base"].equal(weights["same"]) and weights["base"].equal(weights["data"])
    assert not weights["base"].equal(weights["other"])
