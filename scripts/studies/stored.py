"""The completed runs of a study and the masks of any sparsity that follow from their scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from pai.errors import ConfigError
from pai.identity import digest
from pai.masking.mask import load_mask, mask_sha256
from pai.masking.select import Mask, select
from pai.output import MASK_FILE, SCORES_FILE
from pai.reports.collect import LeftOut, Run, collect
from pai.reports.consistency import check_same_experiment
from pai.reports.counted import one_each, usable

SEEDS = ("seeds.initialization", "seeds.data", "seeds.probes")
METRIC = "test_accuracy"  # that copies of a run must agree in; every completed run has it


@dataclass(frozen=True)
class Stored:
    """What lies below a folder.

    Attributes:
        runs: the completed ones, each once.
        layers: of each run directory, in the network's order.
        left_out: the others, and why.
    """

    runs: list[Run]
    layers: Mapping[str, Sequence[str]]
    left_out: list[LeftOut]


def completed(folder: Path) -> Stored:
    """Return the completed runs below ``folder``.

    Of copies (the same configuration, the seed among it) one counts if they agree in accuracy and
    mask, and none if they do not.

    Raises:
        ConfigError: there is none.
    """
    collection = collect(folder)
    counted, left_out = usable(collection.runs, METRIC)
    groups: dict[str, list[Run]] = {}
    for run in counted:
        groups.setdefault(digest(run.part("config")), []).append(run)
    found, copies = one_each(groups, METRIC)
    if not found:
        raise ConfigError(f"{folder}: no completed run")
    layers = {path: list(rows["name"]) for path, rows in collection.layers_by_run.items()}
    return Stored(list(found.values()), layers, [*collection.unreadable, *left_out, *copies])


def check_one_study(runs: Sequence[Run], keys: Sequence[str]) -> None:
    """Check that ``runs`` differ in nothing but ``keys`` and the seed.

    Raises:
        ConfigError: naming the key, its values and runs.
    """
    check_same_experiment(runs, keys, advice="runs of another setting belong into another folder")


def scheduled(run: Run) -> bool:
    """Return whether the run scored more than once on the way to its own sparsity."""
    rounds = run.part("baseline").get("rounds") or ()
    return len(rounds) > 1 or not run.part("config")["schedule"]["_target_"].endswith(".OneShot")


def stored_scores(run: Run, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the scores of a run by layer, in the order of ``layers``.

    Raises:
        ConfigError: the run has not stored them.
    """
    path = run.folder / SCORES_FILE
    if not path.is_file():
        raise ConfigError(f"{run.folder}: no {SCORES_FILE}; run with scoring.save_scores=true")
    found = load_file(path)
    return {name: found[name] for name in layers}


def masks(
    run: Run, layers: Sequence[str], sparsities: Sequence[float]
) -> Iterator[tuple[float, Mask]]:
    """Yield ``(sparsity, mask)`` of a run: the masks it would have had at ``sparsities``.

    The scores of one round do not depend on the sparsity, so these are the very masks of runs at
    those sparsities. Of several rounds there is only the run's own mask, and it is what is yielded.

    Raises:
        ConfigError: the scores are not stored, or the run's own mask does not follow from them.
    """
    own = float(run.value("sparsity"))
    if scheduled(run):
        yield own, load_mask(run.folder / MASK_FILE)
        return
    scores, scope = stored_scores(run, layers), str(run.value("scope"))
    kind = run.part("config").get("sparsity_is", "direct")
    if kind != "direct":
        raise ConfigError(
            f"{run.folder}: sparsity_is={kind}; which masks follow from scores is known for direct"
        )
    if mask_sha256(select(scores, own, scope)) != run.part("mask").get("sha256"):
        raise ConfigError(
            f"{run.folder}: its mask is not the one that its scores give at sparsity={own:g}, "
            f"scope={scope} (was it altered, sanity={run.choice('sanity')}?), so that those of "
            f"other sparsities are unknown"
        )
    for sparsity in sparsities:
        yield sparsity, select(scores, sparsity, scope)
