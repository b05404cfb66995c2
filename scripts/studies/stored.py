"""The completed runs of a study and the masks of any sparsity that follow from their scores."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from pai.errors import ConfigError
from pai.masking.mask import load_mask
from pai.masking.select import Mask, select
from pai.output import MASK_FILE, SCORES_FILE
from pai.reports.collect import Run, collect


def completed(folder: Path) -> tuple[list[Run], dict[str, list[str]]]:
    """Return the completed runs below ``folder``, and the layers of each in the network's order.

    Raises:
        ConfigError: there is none.
    """
    collection = collect(folder)
    runs = [run for run in collection.runs if run.record["status"] == "completed"]
    if not runs:
        raise ConfigError(f"{folder}: no completed run")
    layers = {path: list(rows["name"]) for path, rows in collection.layers_by_run.items()}
    return runs, layers


def scheduled(run: Run) -> bool:
    """Return whether the run scored more than once on the way to its own sparsity."""
    return not str(run.part("config")["schedule"]["_target_"]).endswith(".OneShot")


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
    """
    if scheduled(run):
        yield float(run.value("sparsity")), load_mask(run.folder / MASK_FILE)
        return
    scores = stored_scores(run, layers)
    for sparsity in sparsities:
        yield sparsity, select(scores, sparsity, str(run.value("scope")))
