"""When two runs are the same experiment: configurations flattened, compared and hashed."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

# What changes where or how fast a run computes, not what.
IGNORED = (
    "logger", "device", "scoring.memory_gib", "scoring.cache_dir", "dataset.cache_dir",
    "dataset.num_workers", "dataset.download", "dataset.find_duplicates",
)  # fmt: skip

# Keys that came later, and what a record means that is older than they are.
ADDED = {"scoring.precision": "float32"}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a record with the keys of ``ADDED`` that it lacks.

    Only where the section is there that a key belongs to.
    """
    whole = dict(config)
    for key, value in ADDED.items():
        section, _, name = key.partition(".")
        inner = whole.get(section)
        if isinstance(inner, Mapping) and name not in inner:
            whole[section] = {**inner, name: value}
    return whole


_LARGE = 10**16


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the leaves of ``tree`` as ``{dotted key: JSON}``; lists and empty dicts are leaves.

    Whole numbers look the same whether they were written ``1`` or ``1.0``.
    """
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{name}.")
        else:
            leaves[name] = json.dumps(_whole(value), sort_keys=True)
    return leaves


def _whole(value: Any) -> Any:
    """Return ``value`` with its whole floats, also those within lists and dicts, as integers.

    From 10^16 on it is the other way round, and they stay readable: 1e30.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGE:
        return int(value)
    if isinstance(value, int) and _LARGE <= abs(value) < 10**300 and int(float(value)) == value:
        return float(value)
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value


def value_at(tree: Any, path: Iterable[str], absent: Any = None) -> Any:
    """Return what is at ``path`` in nested mappings, or ``absent`` if nothing is."""
    for part in path:
        tree = tree.get(part, absent) if isinstance(tree, Mapping) else absent
    return tree


def below(key: str, prefixes: Iterable[str]) -> bool:
    """Return whether ``key`` is one of ``prefixes`` or lies under one."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def digest(config: Mapping[str, Any], ignored: Iterable[str] = IGNORED) -> str:
    """Return 16 hex digits that two configurations share exactly if they are the same experiment.

    The same experiment: equal in everything but ``ignored`` keys. With ``(*IGNORED, "seed")`` runs
    that are repetitions of each other share it.
    """
    ignored = tuple(ignored)
    kept = {
        key: value for key, value in flatten(completed(config)).items() if not below(key, ignored)
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
