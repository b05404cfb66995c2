"""Tiny runs on the digits (about a second on a CPU) and a door to pai's own composing of jobs."""

import copy
import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pai.cli import _checked_jobs, _parse, register_resolvers
from pai.compose import Job, compose_jobs
from pai.plan import Plan, prepare
from pai.runner import run
from pai.tracking.base import RunLabels

CHECKOUT = Path(__file__).resolve().parent.parent
LABELS = RunLabels(name="tiny", group=None, job_type="run")
TINY = (
    "model.depth=8", "model.width=4", "training.epochs=1", "scoring.samples_per_class=2",
    "scorer=magnitude", "logger=none", "device=cpu",
)  # fmt: skip


def jobs(*arguments: str) -> list[Job]:
    """Return the jobs of a command line."""
    register_resolvers()
    return compose_jobs(_parse(list(arguments)))


def check(*arguments: str) -> None:
    """Compose and check a command line as the command ``pai`` does before it starts anything."""
    register_resolvers()
    _checked_jobs(_parse(list(arguments)))


@functools.cache
def _config(*overrides: str) -> dict[str, Any]:
    (job,) = jobs(*overrides)
    return job.config


def config(*overrides: str) -> dict[str, Any]:
    """Return the resolved configuration of one run; composed once, a new copy for each caller."""
    return copy.deepcopy(_config(*overrides))


def fitting(model: str) -> list[str]:
    """Return overrides with which ``conf/model/<model>.yaml`` fits the digits, or a tiny task."""
    if model in ("gpt", "hf"):
        chosen = ["dataset=text", "dataset.context_length=12"]
        sizes = ("n_layer=1", "n_embd=8", "n_head=2")
        hf = ["model.name=gpt2", *(f"+model.options.{size}" for size in sizes)]
        return [*chosen, *(hf if model == "hf" else ("model.embed_dim=8", "model.depth=1"))]
    if model in ("gcn", "gat"):
        return ["dataset=karate"]
    sides = {"vgg16_tiny": 64, "vgg19_tiny": 64, "vit_tiny": 16, "vit_small": 16}
    side = sides.get(model, 32 if model.startswith("vgg") else 8)
    chosen = [f"dataset.image_size={side}"] if side != 8 else []
    if model == "timm":
        chosen += ["model.name=resnet10t", "+model.options.zero_init_last=false"]
    return chosen


def plan(*overrides: str, **replaced: Any) -> Plan:
    """Return the plan of a tiny run, with some of its parts replaced by Python objects."""
    return replace(prepare(config(*TINY, *overrides)), **replaced)


def tiny_run(run_dir: Path, *overrides: str, **replaced: Any) -> dict[str, Any]:
    """Run a tiny run in this process and return its record."""
    return run(plan(*overrides, **replaced), run_dir, LABELS)


def record_in(run_dir: Path) -> dict[str, Any]:
    """Read ``record.json`` without pai."""
    record: dict[str, Any] = json.loads((run_dir / "record.json").read_text())
    return record


def untimed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the rows of a history without how fast the training was."""
    return [
        {key: value for key, value in row.items() if not key.endswith("_per_s")} for row in history
    ]


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without W&B and Hydra settings, pai importable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA", "PAI_"))}
    cache = {"PAI_CACHE": os.environ["PAI_CACHE"]}
    return {**kept, **cache, "PYTHONPATH": str(CHECKOUT), **variables}


def python(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in ``cwd`` with nothing on its standard input."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment(**variables),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m pai`` in ``cwd``."""
    return python("-m", "pai", *arguments, cwd=cwd)


def image_folder(root: Path, *, per_class: int = 20, side: int = 16) -> Path:
    """Write a folder of two classes of PNG images, light and dark noise, and return it."""
    stream = np.random.default_rng(0)
    for split, count in (("train", per_class), ("test", 3)):
        for name, brightest in (("dark", 128), ("light", 256)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = stream.integers(brightest - 128, brightest, (side, side, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root
