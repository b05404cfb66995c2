"""In which format float32 numbers are multiplied while scoring.

Torch lets convolutions on a GPU round their float32 factors to TF32, 10 bits of mantissa, unless it
is told otherwise; scores would then differ between a GPU and a CPU by some 1e-3.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "tf32"]

_chosen: ContextVar[Precision] = ContextVar("precision of scoring", default="float32")
_OLDER = {"ieee": "highest", "tf32": "high", "bf16": "medium"}  # torch's older names


@contextmanager
def scoring_precision(precision: Precision) -> Iterator[None]:
    """Let scoring inside the block multiply float32 numbers in this format.

    Args:
        precision: ``float32``: with all 24 bits of the mantissa, as on any CPU, whatever torch is
            set to. ``tf32``: GPUs since Ampere round the factors of convolutions and matrix
            products to 10 bits and are several times faster; sums stay float32, and on a CPU
            nothing changes. Networks in float64 are computed in float64 either way.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be {' or '.join(get_args(Precision))}, got {precision!r}")
    token = _chosen.set(precision)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen_precision() -> Precision:
    """Return what :func:`scoring_precision` has chosen, by default ``float32``."""
    return _chosen.get()


def rounding(kind: "torch.dtype") -> float:
    """Return by how much products of numbers of a type may be off, relatively, as chosen."""
    import torch

    tf32 = kind == torch.float32 and chosen_precision() == "tf32"
    return 2.0**-10 if tf32 else torch.finfo(kind).eps


@contextmanager
def chosen_multiplications() -> Iterator[None]:
    """Let torch multiply in the chosen precision inside the block; restore its settings after."""
    import torch

    tf32 = chosen_precision() == "tf32"
    backends: Any = torch.backends  # its types lack these
    on_cpu = [backends.mkldnn.matmul, backends.mkldnn.conv]
    on_gpu = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    places = [*on_cpu, *on_gpu]
    before = [place.fp32_precision for place in places]
    try:
        # The older switches as well: torch refuses to tell them once they contradict the newer.
        _set_older("tf32" if tf32 else "ieee", cudnn=tf32)
        for place in places:
            place.fp32_precision = "tf32" if tf32 and place in on_gpu else "ieee"
        yield
    finally:
        matmul, cudnn = (before[0], before[2]), before[3]
        strongest = next((name for name in ("bf16", "tf32") if name in matmul), "ieee")
        _set_older(strongest, cudnn=cudnn == "tf32")
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def _set_older(matmul: str, *, cudnn: bool) -> None:
    import torch

    torch.set_float32_matmul_precision(_OLDER[matmul])
    torch.backends.cudnn.allow_tf32 = cudnn
