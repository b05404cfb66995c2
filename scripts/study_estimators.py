"""Study of curvature estimators on real data: error, rank correlation, masks, against time.

    python scripts/study_estimators.py [--dataset-root DIR] [--out runs/study_estimators]

Without ``--dataset-root`` the data are scikit-learn's digits. Each measurement is one JSON file in
OUT/cells; those that are there already are not repeated, so an interrupted study continues. At the
end OUT has ``tables.md`` and ``error_against_time.png``.

Times are CPU seconds of one process with one thread, in units of G, one gradient pass over the same
samples, measured right before and after: other load on the machine matters little. With ``--device
cuda`` they are seconds by the clock. Every seed has its own initialization, scoring samples, warmup
order and probes, and a process of its own.
"""

import argparse
import functools
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from estimator_study.measure import WARMUP_BATCH, builder, dataset, run_seed
from estimator_study.plan import Study, cell_file, cells
from estimator_study.report import write_tables

from pai.environment import describe_environment
from pai.errors import ConfigError, RunError
from pai.library import available
from pai.records import write_bytes_atomically
from pai.reports.extra import require


def begin(study: Study, out: Path) -> None:
    """Check everything that is cheap to check and write down what the study is.

    Raises:
        ConfigError: the data are not there or too few, the model is not for them, matplotlib is
            missing, or the folder holds another study.
    """
    if study.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: torch sees no CUDA device; use --device cpu")
    require("matplotlib")
    wanted = max(*study.sizes, study.samples_per_class) + study.reference_per_class
    smallest = dataset(study).check().smallest_class
    if wanted > smallest:
        raise ConfigError(
            f"sizes and reference-per-class: {wanted} samples per class are needed, and the "
            f"smallest class has {smallest}"
        )
    builder(study)
    (out / "cells").mkdir(parents=True, exist_ok=True)
    path, told = out / "study.json", json.loads(json.dumps(asdict(study)))
    if path.exists() and (stored := json.loads(path.read_text())["study"]) != told:
        key = next(key for key in told if stored.get(key) != told[key])
        raise ConfigError(f"out: {out} holds a study with {key}={stored.get(key)}, not {told[key]}")
    if not path.exists():
        text = {"study": told, "environment": describe_environment(torch.device(study.device))}
        write_bytes_atomically(path, (json.dumps(text, indent=2) + "\n").encode())


def describe(out: Path) -> str:
    """Return what was measured and where, as text."""
    stored = json.loads((out / "study.json").read_text())
    study, place = stored["study"], stored["environment"]
    told = ", ".join(f"{key} {value}" for key, value in study.items() if key != "dataset_root")
    data = "an image folder" if study["dataset_root"] else "digits"
    torch_version = place["packages"]["torch"]
    threads = ", 1 thread" if study["device"] == "cpu" else ""
    return f"{data}, {told}; {place['device_name']}{threads}, torch {torch_version}"


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def positive_number(text: str) -> float:
    """Return a number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/study_estimators"))
    add("--dataset-root", help="folder with train/<class>/* and test/<class>/*; default: digits")
    add("--model", default="resnet20", choices=available("model"))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--samples-per-class", type=positive, default=10)
    add("--sizes", type=positive, nargs="+", default=[1, 3, 10, 25], help="samples per class")
    add("--reference-per-class", type=positive, default=100)
    add("--warmup-batches", type=positive, default=40, help=f"of {WARMUP_BATCH} images")
    add(
        "--temperatures",
        type=positive_number,
        nargs="+",
        default=[1.0, 200.0],
        help="the smallest is the base of every other part",
    )
    add("--draws", type=positive, nargs="+", default=[1, 2, 4, 8, 16])
    add("--probes", type=positive, nargs="+", default=[1, 3, 10, 30])
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--processes", type=positive, help="how many seeds at once; default: 3, on a GPU 1")
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, then write tables and figure; exit 1 with one line if it cannot."""
    arguments = vars(parse())
    out, processes = arguments.pop("out"), arguments.pop("processes")
    seeds = list(dict.fromkeys(arguments.pop("seeds")))
    processes = processes or (3 if arguments["device"] == "cpu" else 1)
    options: dict[str, Any] = {
        key: tuple(sorted(set(value))) if isinstance(value, list) else value
        for key, value in arguments.items()
    }
    study = Study(**options)
    try:
        begin(study, out)
        if min(processes, len(seeds)) == 1:
            for seed in seeds:
                run_seed(study, seed, out)
        else:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
                list(pool.map(functools.partial(run_seed, study, out=out), seeds))
    except (ConfigError, RunError) as error:
        sys.exit(f"study error: {error}")
    from estimator_study.figure import write_figure  # needs matplotlib

    wanted = [cell for seed in seeds for cell in cells(study, seed)]
    paths = [cell_file(out, setting, method) for _, setting, method in wanted]
    found = [json.loads(path.read_text()) for path in paths]
    write_tables(found, describe(out), out / "tables.md")
    write_figure(found, out / "error_against_time.png")
    print((out / "tables.md").read_text())


if __name__ == "__main__":
    main()
