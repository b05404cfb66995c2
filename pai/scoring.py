"""The scores and the mask of one round of a run: samples, cache, schedule, times, the record."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pai.clock import Clock
from pai.data.task import Bundle, SampleBatches
from pai.masking.effective import Connectivity
from pai.masking.mask import dense_mask
from pai.masking.schedule import find_mask
from pai.masking.select import Mask, select
from pai.masking.target import Reached, reach_effective
from pai.output import Output
from pai.parallel import processes
from pai.plan import Plan
from pai.prunable import prunable_parameters
from pai.scorers.memo import remembering
from pai.seeding import derive_seed, generator, seed_of

Draw = Callable[[int], SampleBatches]
"""Gives the scoring batches of a round of the schedule, counted from 0."""
_FEW, _SHARE = 10, 0.01  # effective weights beside the wanted ones that are not worth a warning


def scoring_samples(data: Bundle, scoring: Mapping[str, Any], seed: int) -> Draw:
    """Return a function from a round to its scoring batches, each round's an independent draw."""

    def draw(number: int) -> SampleBatches:
        chosen = seed if number == 0 else derive_seed(seed, f"scoring_round/{number}")
        return data.scoring_batches(scoring["samples_per_class"], scoring["batch_size"], chosen)

    return draw


def score_and_select(
    plan: Plan, model: nn.Module, draw: Draw, record: dict[str, Any], clock: Clock, output: Output,
    *, number: int, sparsity: float, within: Mask | None,
) -> Mask:  # fmt: skip
    """Return the mask of the round ``number`` of training and pruning; not applied.

    Its seconds are added to the clock's, what the scores are and where they came from is recorded.
    """
    config = plan.config
    record["scoring"] = _describe(plan, model, draw(0), output)
    if plan.scorer.keeps_everything:
        clock.add(score=0.0, mask=0.0)
        return dense_mask(
            prunable_parameters(model, include_classifier=config["include_classifier"])
        )
    scores: dict[str, Tensor] = {}
    spent = Clock({"score": 0.0}, plan.device)

    def scorer(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        with spent.timed("score"):
            scores.update(plan.sanity.scores(plan.scorer(*arguments, **options)))
        return scores

    purpose = f"probes/{number}" if number else "probes"
    probes = generator(seed_of(config, "probes"), purpose, plan.device)
    folder = config["scoring"]["cache_dir"]
    # later rounds depend on how far earlier ones have moved the random stream; of several
    # processes one could wait for the other
    alone = len(plan.schedule.sparsities(sparsity)) == processes() == 1
    with (
        remembering(
            Path(folder).expanduser() if folder and alone else None, model, draw(0), probes,
            about={"model": config["model"], "spec": plan.spec.describe()},
        ) as memo,
        spent.timed("both"),
    ):  # fmt: skip
        mask = find_mask(
            model, draw, scorer,
            sparsity=sparsity, schedule=plan.schedule, scope=plan.rule, generator=probes,
            include_classifier=config["include_classifier"],
            within=within, towards=config["sparsity"],
        )  # fmt: skip
        if config["sparsity_is"] == "effective":
            mask, reached = reach_effective(
                lambda direct: select(scores, direct, plan.rule, within=within),
                Connectivity(model, next(iter(draw(0)))[0]),
                sparsity,
            )
            record["scoring"] |= {"effective_target": asdict(reached)}
            _warn_if_missed(sparsity, reached, mask, output)
    seconds = spent.seconds
    clock.add(score=seconds["score"], mask=seconds["both"] - seconds["score"])
    entries = [] if memo is None else memo.entries
    record["scoring"] |= {"cached": any(entry["hit"] for entry in entries), "cache": entries}
    record["scoring"] |= {"zero_scores": _zero_scores(scores, mask, output)}
    output.scores(scores, keep=config["scoring"]["save_scores"])
    return mask


def _warn_if_missed(sparsity: float, reached: Reached, mask: Mask, output: Output) -> None:
    """Warn if the effective weights of ``mask`` are not about as many as wanted."""
    wanted, effective = reached.wanted, reached.effective
    if abs(effective - wanted) <= max(_FEW, _SHARE * wanted):
        return
    total = sum(keep.numel() for keep in mask.values())
    why = "the dense network has no more" if effective < wanted else "fewer connect nothing"
    output.warn(
        "the effective sparsity is %.4f, not %g as asked: %s weights are on paths from input to "
        "output where %s are wanted; %s",
        1 - effective / total, sparsity, f"{effective:,}", f"{wanted:,}", why,
    )  # fmt: skip


def _zero_scores(scores: Mapping[str, Tensor], mask: Mask, output: Output) -> dict[str, int]:
    """Count the scores of the last round that are exactly zero, by what became of the weight.

    If some of these weights are kept and others are not, a warning says so.
    """
    zeros = {name: value == 0 for name, value in scores.items()}
    kept = sum(int((bits & mask[name].to(bits.device)).sum()) for name, bits in zeros.items())
    removed = sum(int(bits.sum()) for bits in zeros.values()) - kept
    if kept and removed:
        output.warn(
            "%s weights that are kept have a score of zero, as have %s that are removed; among "
            "equal scores position decides", f"{kept:,}", f"{removed:,}",
        )  # fmt: skip
    return {"kept": kept, "removed": removed}


def _describe(
    plan: Plan, model: nn.Module, batches: SampleBatches, output: Output
) -> dict[str, Any]:
    parameters = prunable_parameters(model, include_classifier=plan.config["include_classifier"])
    told = plan.scorer.describe(model, batches, parameters)
    if told.get("curved"):
        output.say(
            "the curvature is the Gauss-Newton diagonal, not the Hessian's: the network has second "
            "derivatives in %d of %d weight tensors", len(told["curved"]), len(parameters),
        )  # fmt: skip
    return told
