"""How one cell of the study is measured and stored."""

import copy
import functools
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pai
from estimator_study.plan import EXACT, Method, Setting, Study, base_setting, cell_file, cells
from estimator_study.report import SPARSITIES, Cell
from pai.data.bundle import Batches, DataBundle, Dataset
from pai.errors import ConfigError
from pai.library import load
from pai.objective import mean_gradient
from pai.records import write_bytes_atomically
from pai.reports.measures import mask_iou, rank_correlation, relative_error
from pai.saliency import optimal_brain_damage
from pai.seeding import generator, global_seed
from pai.state import scoring_mode

Named = dict[str, Tensor]
Samples = list[tuple[Tensor, Tensor]]
SCORING_BATCH, WARMUP_BATCH = 100, 128  # as in conf/config.yaml


def dataset(study: Study) -> Dataset:
    """Return the image folder, or the digits."""
    found: Dataset = (
        load("dataset", "imagefolder", root=study.dataset_root)
        if study.dataset_root
        else load("dataset", "digits")
    )
    return found


@functools.cache
def data_of(study: Study) -> DataBundle:
    """Return the data, loaded once per process."""
    images: Any = dataset(study).load()
    loaded: DataBundle = images.to(torch.device(study.device))
    return loaded


def builder(study: Study) -> Callable[[], nn.Module]:
    """Return what builds the network for the data.

    Raises:
        ConfigError: it is not for images, or not for these.
    """
    build: Callable[..., nn.Module] = load("model", study.model)
    parameters = inspect.signature(build).parameters
    try:
        supplied = dataset(study).check().arguments(parameters)
    except ValueError as error:
        raise ConfigError(f"model: {study.model} {error}") from error
    if not supplied.keys() <= parameters.keys():
        raise ConfigError(f"model: {study.model} is not for images")
    return functools.partial(build, **supplied)


@functools.cache
def network(study: Study, seed: int, warmup: str) -> nn.Module:
    """Return the initialised network after its warmup."""
    data = data_of(study)
    with global_seed(seed, "initialization"):
        model = builder(study)().to(study.device)
    options = {} if warmup == "none" else {"num_batches": study.warmup_batches}
    load("warmup", warmup, **options)(model, data.warmup_batches(WARMUP_BATCH, seed))
    return model.eval()


@functools.cache
def samples(study: Study, seed: int, per_class: int) -> Samples:
    """Return scoring batches; smaller sets are parts of the larger ones."""
    return list(data_of(study).scoring_batches(per_class, SCORING_BATCH, seed))


def other_samples(study: Study, seed: int) -> Batches:
    """Return many samples, none of which is in any of :func:`samples`."""
    data = data_of(study)
    largest = max(*study.sizes, study.samples_per_class)
    used = data.scoring_batches(largest, SCORING_BATCH, seed).order
    free = torch.ones(len(data.train), dtype=torch.bool)
    free[used] = False
    rest = replace(data, train=data.train.subset(torch.nonzero(free).flatten()))
    return rest.scoring_batches(study.reference_per_class, SCORING_BATCH, seed)


def seconds(work: Callable[[], Named], device: str) -> tuple[float, Named]:
    """Return the CPU time of ``work``, on a GPU its time by the clock, and its result."""
    if torch.device(device).type != "cuda":
        started = time.process_time()
        result = work()
        return time.process_time() - started, result
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started, result


def timed(study: Study, setting: Setting, method: Method) -> tuple[Named, float, float]:
    """Return a diagonal, its seconds, and those of one gradient pass around it."""
    model = network(study, setting.seed, setting.warmup)
    batches = samples(study, setting.seed, setting.per_class)
    parameters = pai.prunable_parameters(model)

    def gradient_pass() -> Named:
        with scoring_mode(model):
            return mean_gradient(model, batches, parameters, None, setting.temperature)

    def diagonal(chosen: Samples) -> Named:
        purpose = cell_file(Path(), setting, method).stem
        options: dict[str, Any] = dict(method.options)
        return pai.curvature_diagonal(
            model, chosen, method.estimator, temperature=setting.temperature,
            generator=generator(setting.seed, purpose, study.device), **options,
        )  # fmt: skip

    gradient_pass()
    diagonal([(x[:1], y[:1]) for x, y in batches[:1]])  # torch loads parts of itself at first use
    units = [seconds(gradient_pass, study.device)[0] for _ in range(2)]
    spent, found = seconds(lambda: diagonal(batches), study.device)
    units += [seconds(gradient_pass, study.device)[0] for _ in range(2)]
    return found, spent, statistics.median(units)


@functools.cache
def exact(study: Study, setting: Setting) -> tuple[Named, float, float]:
    """Return the exact diagonal with its times, computed once."""
    return timed(study, setting, EXACT)


@functools.cache
def truth(study: Study, setting: Setting) -> Named:
    """Return the exact diagonal; for the base setting, where it is on trial too, from float64."""
    if setting != base_setting(study, setting.seed):
        return exact(study, setting)[0]
    model = copy.deepcopy(network(study, setting.seed, setting.warmup)).double()
    batches = [(x.double(), y) for x, y in samples(study, setting.seed, setting.per_class)]
    return pai.curvature_diagonal(model, batches, "exact_ggn", temperature=setting.temperature)


@functools.cache
def reference(study: Study, seed: int) -> Named:
    """Return the exact diagonal of the base network over many other samples."""
    base = base_setting(study, seed)
    return pai.curvature_diagonal(
        network(study, seed, base.warmup), list(other_samples(study, seed)), "exact_ggn",
        temperature=base.temperature,
    )  # fmt: skip


def flat(values: Named) -> Any:
    """Return all values in one NumPy array."""
    return np.concatenate([value.detach().cpu().numpy().ravel() for value in values.values()])


def kept(scores: Named) -> dict[str, Any]:
    """Return the globally selected masks, flat, by sparsity."""
    return {f"{sparsity:g}": flat(pai.select(scores, sparsity)) for sparsity in SPARSITIES}


def masks(weights: Named, diagonal: Named) -> dict[str, dict[str, Any]]:
    """Return the masks of the two saliencies that need no gradient."""
    saliency = {name: optimal_brain_damage(weights[name], h) for name, h in diagonal.items()}
    return {"h": kept(diagonal), "w2h": kept(saliency)}


def overlap(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float]:
    """Return the IoU at every sparsity."""
    return {sparsity: mask_iou(first[sparsity], second[sparsity]) for sparsity in first}


def agreement(weights: Named, found: Named, true: Named) -> dict[str, Any]:
    """Return how close ``found`` is to ``true``, all prunable weights together."""
    ours, theirs = masks(weights, found), masks(weights, true)
    return {
        "relative_error": relative_error(flat(found), flat(true)),
        "rank_correlation": rank_correlation(flat(found), flat(true)),
        "iou": {formula: overlap(ours[formula], theirs[formula]) for formula in ours},
    }


def measure(study: Study, part: str, setting: Setting, method: Method) -> Cell:
    """Return one cell."""
    is_exact = method == EXACT
    found, spent, unit = exact(study, setting) if is_exact else timed(study, setting, method)
    model = network(study, setting.seed, setting.warmup)
    weights = {name: p.detach() for name, p in pai.prunable_parameters(model).items()}
    true = truth(study, setting)
    cell: Cell = {
        "part": part, **asdict(setting), "estimator": method.estimator,
        "options": dict(method.options), "seconds": spent, "gradient_pass_s": unit,
        "gradient_passes": spent / unit, "negative_share": float((flat(found) < 0).mean()),
        "samples": sum(len(y) for _, y in samples(study, setting.seed, setting.per_class)),
        "same_samples": agreement(weights, found, true),
    }  # fmt: skip
    if is_exact:  # what the weights alone give away of the saliency's masks
        magnitude = kept({name: weight.abs() for name, weight in weights.items()})
        cell["magnitude_iou"] = overlap(magnitude, masks(weights, true)["w2h"])
    if part == "conditions":
        base = exact(study, base_setting(study, setting.seed))[0]
        cell["base"] = agreement(weights, found, base)
    else:
        cell["many_samples"] = agreement(weights, found, reference(study, setting.seed))
    return cell


def run_seed(study: Study, seed: int, out: Path) -> None:
    """Measure and store the cells of one seed that are missing."""
    torch.set_num_threads(1)
    for part, setting, method in cells(study, seed):
        path = cell_file(out, setting, method)
        if not path.exists():
            cell = measure(study, part, setting, method)
            text = json.dumps(cell, indent=2, allow_nan=False) + "\n"
            write_bytes_atomically(path, text.encode())
            error = cell["same_samples"]["relative_error"]
            print(f"{path.stem}: {cell['gradient_passes']:.1f} G, error {error:.2g}",
                  file=sys.stderr)  # fmt: skip
