"""Every scorer in one round and in several, and layer budgets, in runs on the digits: the masks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import record_in, tiny_run
from torch import Tensor, nn

import pai
from pai.objective import Named
from pai.scorers.base import Scorer

OPTIONS = ("training.epochs=0", "scoring.samples_per_class=1", "scoring.save_scores=true")
SCHEDULES = {
    "oneshot": ("schedule=oneshot",),
    "linear": ("schedule=linear", "schedule.rounds=2"),
}
FASTER = dict.fromkeys(("hd", "hp", "hts"), ("scorer.num_probes=1",)) | {
    "phew": ("scorer.coverage=0.15",)
}
ONE_METHOD = {"force", "iter_snip", "snip"}  # these differ by their default schedules alone


def masks_of(folder: Path, *overrides: str, scorers: list[str]) -> dict[str, dict[str, Tensor]]:
    """Run the scorers, check what must hold for each mask and return the masks."""
    masks = {}
    for name in scorers:
        more = FASTER.get(name, ())
        record = tiny_run(folder / name, *OPTIONS, f"scorer={name}", *more, *overrides)
        mask, weights, scores = (
            load_file(folder / name / f"{file}.safetensors") for file in ("mask", "model", "scores")
        )
        total = sum(keep.numel() for keep in mask.values())
        kept = {layer: int(keep.sum()) for layer, keep in mask.items()}
        assert record["status"] == "completed"
        assert sum(kept.values()) == record["mask"]["kept"] == round(0.1 * total)
        assert {layer["name"]: layer["kept"] for layer in record["mask"]["layers"]} == kept
        assert {layer: value.shape for layer, value in scores.items()} == {
            layer: keep.shape for layer, keep in mask.items()
        }
        for layer, keep in mask.items():
            assert bool(scores[layer].isfinite().all())
            assert torch.equal(weights[layer] != 0, keep)
        masks[name] = mask
    return masks


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(keep, other[layer]) for layer, keep in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_two_methods_give_the_same_mask(schedule: str, tmp_path: Path) -> None:
    scorers = [name for name in pai.available_scorers() if name != "none"]
    masks = masks_of(tmp_path, *SCHEDULES[schedule], scorers=scorers)
    for name, mask in masks.items():
        twins = {other for other in masks if same(mask, masks[other])}
        assert twins == (ONE_METHOD if name in ONE_METHOD else {name})


@pytest.mark.parametrize("scope", ["layer", "uniform_plus", "erk"])
def test_a_budget_holds_for_every_score(scope: str, tmp_path: Path) -> None:
    scorers = ["magnitude", "random", "snip"]
    options = ("schedule=exponential", "schedule.rounds=2", f"scope={scope}")
    masks = masks_of(tmp_path, *options, scorers=scorers)
    counts = [{layer: int(keep.sum()) for layer, keep in mask.items()} for mask in masks.values()]
    assert all(count == counts[0] for count in counts)
    assert not any(same(masks["snip"], masks[name]) for name in scorers[:2])


class FirstHalf(Scorer):
    """One for the first half of the first layer, zero for all else."""

    def score(
        self, model: nn.Module, batches: Any, parameters: Any, *, loss_fn: Any, generator: Any
    ) -> Named:
        scores = {name: torch.zeros_like(p) for name, p in parameters.items()}
        first = next(iter(scores.values())).view(-1)
        first[: len(first) // 2] = 1
        return scores


def test_weights_that_are_kept_without_a_score_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = tiny_run(tmp_path / "zeros", *OPTIONS, scorer=FirstHalf())
    mask = record["mask"]
    known = mask["layers"][0]["total"] // 2
    kept, removed = mask["kept"] - known, mask["prunable"] - mask["kept"]
    assert record["scoring"]["zero_scores"] == {"kept": kept, "removed": removed}
    assert record_in(tmp_path / "zeros")["scoring"] == record["scoring"]
    assert f"{kept} weights that are kept have a score of zero" in caplog.text
    caplog.clear()
    record = tiny_run(tmp_path / "none", *OPTIONS, "scorer=random")
    assert record["scoring"]["zero_scores"] == {"kept": 0, "removed": 0}
    assert "score of zero" not in caplog.text
