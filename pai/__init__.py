"""Pruning at initialization: score the weights of an untrained network, keep the best, train those.

The public names load on first use, so that ``import pai`` costs nothing::

    import pai

    scorer = pai.load_scorer("hts", num_probes=50)
    scores = scorer(model, batches)              # {parameter name: tensor}, high = keep
    mask = pai.select(scores, sparsity=0.95)     # {parameter name: bool tensor}
    pai.apply_mask(model, mask)                  # pruned weights are exactly zero
"""

import importlib
from typing import TYPE_CHECKING, Any

from pai.version import __version__ as __version__

if TYPE_CHECKING:
    from pai.curvature import curvature_diagonal as curvature_diagonal
    from pai.export.compact import compact as compact
    from pai.export.sparse import load_sparse as load_sparse
    from pai.export.sparse import save_sparse as save_sparse
    from pai.library import available_scorers as available_scorers
    from pai.library import default_schedule as default_schedule
    from pai.library import load_schedule as load_schedule
    from pai.library import load_scorer as load_scorer
    from pai.masking.mask import apply_mask as apply_mask
    from pai.masking.mask import load_mask as load_mask
    from pai.masking.mask import save_mask as save_mask
    from pai.masking.schedule import find_mask as find_mask
    from pai.masking.select import select as select
    from pai.memory import memory_budget as memory_budget
    from pai.precision import scoring_precision as scoring_precision
    from pai.prunable import prunable_parameters as prunable_parameters
    from pai.warmup import warm_up_batchnorm as warm_up_batchnorm

_HOME = {
    "apply_mask": "pai.masking.mask",
    "available_scorers": "pai.library",
    "compact": "pai.export.compact",
    "curvature_diagonal": "pai.curvature",
    "default_schedule": "pai.library",
    "find_mask": "pai.masking.schedule",
    "load_mask": "pai.masking.mask",
    "load_schedule": "pai.library",
    "load_scorer": "pai.library",
    "load_sparse": "pai.export.sparse",
    "memory_budget": "pai.memory",
    "prunable_parameters": "pai.prunable",
    "save_mask": "pai.masking.mask",
    "save_sparse": "pai.export.sparse",
    "scoring_precision": "pai.precision",
    "select": "pai.masking.select",
    "warm_up_batchnorm": "pai.warmup",
}

__all__ = sorted(_HOME)  # noqa: PLE0605  (a sorted list of the literal names above)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pai' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
