"""Remembering what was computed from a network: sweeps over sparsities score it once.

The key of an entry says everything the numbers depend on: the network (its configuration, weights
and buffers; the code of the packages that its modules' classes and its builder come from), the
scoring samples and how they are batched, the state of the random stream, the options of what is
computed, the source code that computes it, torch's version, device and precision. So there is
nothing to invalidate, and a hit is bit for bit what would have been computed. Code counts by its
text, that of installed packages by their version; a function that a ``forward`` takes from yet
another package is not seen.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pai.cache import Tensors, cached, checksum
from pai.objective import Batches, Named
from pai.precision import chosen_precision
from pai.trust import trusted_packages


@dataclass
class Memo:
    """Where to remember, what about; ``entries`` lists what was asked for: key and hit or not."""

    folder: Path
    subject: str
    entries: list[dict[str, Any]] = field(default_factory=list)


_active: ContextVar[Memo | None] = ContextVar("memo of the network that is scored", default=None)


@contextmanager
def remembering(
    folder: Path | None,
    model: nn.Module,
    batches: Batches,
    generator: torch.Generator | None,
    about: Mapping[str, Any],
) -> Iterator[Memo | None]:
    """Let scorers in the block remember in ``folder`` (``None``: nothing is remembered).

    Args:
        folder: of the cache; see :mod:`pai.cache`.
        model: scored in the block, unchanged in between.
        batches: the scoring samples, the same in the block.
        generator: the random stream that the scorers get.
        about: what weights do not tell: how the model is built. Must turn into JSON.
    """
    if folder is None:
        yield None
        return
    memo = Memo(folder, _subject(model, batches, generator, about))
    token = _active.set(memo)
    try:
        yield memo
    finally:
        _active.reset(token)


def is_remembering() -> bool:
    """Return whether this is in a block of :func:`remembering`."""
    return _active.get() is not None


def remembered(
    what: Any,
    parameters: Mapping[str, nn.Parameter],
    parts: tuple[str, ...],
    compute: Callable[[], dict[str, Named]],
) -> dict[str, Named]:
    """Return ``compute()``, or what it returned earlier for the same subject.

    Args:
        what: a dataclass with plain options, whose class computes; others are not remembered.
        parameters: that are scored.
        parts: the keys of the result; each holds one tensor per parameter in its shape.
        compute: gives the result.
    """
    memo, options = _active.get(), _options(what)
    if memo is None or options is None:
        return compute()
    asked = [memo.subject, type(what).__qualname__, options, list(parameters), list(parts)]
    sources = source_version(inspect.getsourcefile(type(what)) or "")
    key = hashlib.sha256(json.dumps([*asked, sources]).encode()).hexdigest()
    shapes = {f"{part}/{name}": p.shape for part in parts for name, p in parameters.items()}

    def flat() -> Tensors:
        result = compute()
        return {f"{part}/{name}": result[part][name] for part in parts for name in parameters}

    found, hit = cached(memo.folder, key, shapes, flat)
    memo.entries.append({"what": type(what).__qualname__, "key": key, "hit": hit})
    device = next(iter(parameters.values())).device
    return {
        part: {name: found[f"{part}/{name}"].to(device) for name in parameters} for part in parts
    }


def _options(what: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass of numbers and strings; ``None`` for anything else."""
    if not dataclasses.is_dataclass(what):
        return None
    options = {f.name: getattr(what, f.name) for f in dataclasses.fields(what)}
    plain = all(value is None or isinstance(value, str | int | float) for value in options.values())
    return options if plain else None


def _subject(
    model: nn.Module, batches: Batches, generator: torch.Generator | None, about: Mapping[str, Any]
) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    device = next(model.parameters()).device
    place = f"{torch.__version__} {device.type} {chosen_precision()}"
    digest.update(f"{place} {type(model).__qualname__}".encode())
    classes = {type(module).__module__.partition(".")[0] for module in model.modules()}
    for package in sorted({*classes, *trusted_packages()} - {"pai", "torch"}):
        digest.update(f"{package} {_code_version(package)}".encode())
    if device.type == "cuda":
        digest.update(torch.cuda.get_device_name(device).encode())
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    digest.update(checksum(state).encode())
    for inputs, targets in batches:
        digest.update(checksum({"inputs": inputs, "targets": targets}).encode())
    if generator is not None:
        digest.update(checksum({"state": generator.get_state()}).encode())
    return digest.hexdigest()


@functools.cache
def source_version(file: str) -> str:
    """Return the SHA-256 of the source of ``pai`` that scores depend on, and of ``file``."""
    package = Path(__file__).parent.parent
    parts = ("*.py", "curvature/*.py", "scorers/*.py", "models/*.py")
    files = [path for part in parts for path in sorted(package.glob(part))]
    return _text_version([*files, *([Path(file)] if file else [])])


@functools.cache
def _code_version(package: str) -> str:
    """Return the version of an installed package, and of any other the SHA-256 of its source."""
    module = sys.modules.get(package)
    if module is None:
        return "not imported"
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    places = folders or [Path(file) for file in (getattr(module, "__file__", None),) if file]
    installed = [Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")]
    if all(any(place.is_relative_to(root) for root in installed) for place in places):
        try:
            return version(package)
        except PackageNotFoundError:  # it has no version, or another name than its distribution
            pass
    inside = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return _text_version(inside or places)


def _text_version(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
