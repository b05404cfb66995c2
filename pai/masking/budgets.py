"""Layer budgets: how many weights each layer keeps, fixed by shapes and not by scores.

A budget is a function ``(shapes, kept) -> {name: quota}``: the shapes of the scored weights in the
order of the network and the number to keep of all of them together. Quotas need not be whole; they
sum to ``kept``, and :func:`whole_numbers` rounds them.

Legend: n_l weights of layer l, k weights kept in all, q_l the quota of layer l.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Shapes = Mapping[str, Sequence[int]]
Budget = Callable[[Shapes, int], Mapping[str, float]]
_DIGITS = 6  # remainders that differ by less are equal, so that rounding errors decide nothing
_LAST_DENSITY = 0.2
_CONVOLUTION_DIMS, _MATRIX_DIMS = 3, 2


def kept_count(sparsity: float, total: int) -> int:
    """Return ``max(1, round((1 - sparsity) * total))``, the number of weights to keep."""
    return max(1, round((1 - sparsity) * total))


def sizes_of(shapes: Shapes) -> dict[str, int]:
    """Return the number of weights of each layer."""
    return {name: math.prod(shape) for name, shape in shapes.items()}


def same_fraction(shapes: Shapes, kept: int) -> dict[str, float]:
    """Return ``q_l = k n_l / sum n``: every layer keeps the same fraction."""
    sizes = sizes_of(shapes)
    total = sum(sizes.values())
    return {name: kept * size / total for name, size in sizes.items()}


def uniform_plus(shapes: Shapes, kept: int) -> dict[str, float]:
    """Return the same fraction for all layers but the first and the last.

    The first layer, if it is a convolution (3 or more dimensions), stays dense. The last layer, if
    it is a matrix (2 dimensions, a fully connected layer), keeps at least ``ceil(0.2 n)`` weights.
    First and last are by the order of ``shapes``, which is the order of registration. In a
    convolutional network the last matrix is the classifier; where it is not pruned at all, which is
    the default, the rule for it has nothing to do.

    Source: Gale et al. 2019, arXiv 1902.09574; the name is from Lee et al. 2021, arXiv 2010.07611.

    Raises:
        ValueError: what first and last layer keep in any case is more than ``kept``.
    """
    sizes = sizes_of(shapes)
    lowest = dict.fromkeys(sizes, 0.0)
    first, last = next(iter(sizes)), list(sizes)[-1]
    if len(shapes[last]) == _MATRIX_DIMS:
        lowest[last] = float(math.ceil(_LAST_DENSITY * sizes[last]))
    if len(shapes[first]) >= _CONVOLUTION_DIMS:
        lowest[first] = float(sizes[first])
    if sum(lowest.values()) > kept:
        raise ValueError(
            f"scope: uniform_plus keeps at least {sum(lowest.values()):,.0f} weights (all of "
            f"{first!r} if it is a convolution, 20 % of {last!r} if it is a matrix), more than the "
            f"{kept:,} that this sparsity leaves; use a lower sparsity or another scope"
        )
    return proportional(_floats(sizes), kept, lowest, _floats(sizes))


def erdos_renyi_kernel(shapes: Shapes, kept: int) -> dict[str, float]:
    """Return ``q_l = min(n_l, eps sum_d shape_l[d])``, with the eps that makes them sum to k.

    So the density of a convolution is ``eps (in + out + kh + kw) / (in out kh kw)``, at most 1;
    layers that would exceed 1 are dense, and the others share the rest by the same rule. The input
    channels of a grouped convolution are those of one group, as in its weight's shape.

    Source: Evci et al. 2020, arXiv 1911.11134, section 3 (1), after Mocanu et al. 2018.
    """
    sizes = _floats(sizes_of(shapes))
    weights = {name: float(sum(shape)) for name, shape in shapes.items()}
    return proportional(weights, kept, dict.fromkeys(sizes, 0.0), sizes)


@dataclass(frozen=True)
class CopiedBudget:
    """The counts of another mask; ``source`` names it in messages.

    Asked for more weights than that mask keeps, on the way to it in a schedule of several rounds,
    it returns ``q_l = n_l d_l^t`` with d_l the density in the mask, and for a layer of which the
    mask keeps nothing ``q_l = (n_l + 1)^(1 - t) - 1``; 0 <= t <= 1 is what makes the sum right.
    """

    counts: Mapping[str, int]
    shapes: Shapes
    source: str = "the given mask"

    def __call__(self, shapes: Shapes, kept: int) -> dict[str, float]:
        """Return the quotas.

        Raises:
            ValueError: names or shapes are not those of the mask, or it keeps more than ``kept``.
        """
        self.check_shapes(shapes)
        if kept < sum(self.counts.values()):
            self.check_total(shapes, kept)
        if kept == sum(self.counts.values()):
            return _floats(self.counts)
        low, high = 0.0, 1.0
        for _ in range(60):  # to the precision of float64
            middle = (low + high) / 2
            low, high = (middle, high) if self._total(middle) > kept else (low, middle)
        return self._at(high)

    def _at(self, time: float) -> dict[str, float]:
        sizes = sizes_of(self.shapes)
        return {
            n: sizes[n] * (k / sizes[n]) ** time if k else (sizes[n] + 1) ** (1 - time) - 1
            for n, k in self.counts.items()
        }

    def _total(self, time: float) -> float:
        return sum(self._at(time).values())

    def check_shapes(self, shapes: Shapes) -> None:
        """Raise ``ValueError`` unless the mask is of these weights."""
        for name in [*shapes, *self.counts]:
            if name not in self.counts:
                raise ValueError(f"scope: {self.source} has no layer {name!r}, the network has")
            if name not in shapes:
                raise ValueError(
                    f"scope: {self.source} has a layer {name!r} that is not scored here; was it "
                    f"made with another model or include_classifier?"
                )
            if tuple(shapes[name]) != tuple(self.shapes[name]):
                raise ValueError(
                    f"scope: {name!r} has shape {tuple(self.shapes[name])} in {self.source}, "
                    f"{tuple(shapes[name])} in the network"
                )

    def check_total(self, shapes: Shapes, kept: int) -> None:
        """Raise ``ValueError`` unless the mask keeps ``kept`` weights; name the sparsity it has."""
        total, mine = sum(sizes_of(shapes).values()), sum(self.counts.values())
        if mine != kept:
            raise ValueError(
                f"scope: {self.source} keeps {mine:,} of {total:,} weights, the sparsity asked for "
                f"{kept:,}; use sparsity={_shortest(total, mine)}"
            )


def copied_budget(mask: Mapping[str, Tensor], source: str = "the given mask") -> CopiedBudget:
    """Return the budget of ``mask`` (boolean tensors by name, True = keep)."""
    counts = {name: int(keep.sum()) for name, keep in mask.items()}
    shapes = {name: tuple(keep.shape) for name, keep in mask.items()}
    return CopiedBudget(counts, shapes, source)


def read_budget(path: Path) -> CopiedBudget:
    """Return the budget of a ``mask.safetensors``, or of the run directory that holds one.

    Raises:
        ValueError: there is no readable mask.
    """
    try:
        file, mask = read_mask(path)
    except ValueError as error:
        raise ValueError(f"scope: {error}") from error
    return copied_budget(mask, str(file))


def read_mask(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """Return the file and the mask of a ``mask.safetensors`` or of a run directory.

    Raises:
        ValueError: there is no readable mask.
    """
    file = path / "mask.safetensors" if path.is_dir() else path
    try:
        mask = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as a mask: {error}") from error
    for name, keep in mask.items():
        if keep.dtype != torch.bool:
            raise ValueError(f"{file} is no mask: {name!r} is {keep.dtype}, not bool")
    return file, mask


def proportional(
    weights: Mapping[str, float],
    total: float,
    lowest: Mapping[str, float],
    highest: Mapping[str, float],
) -> dict[str, float]:
    """Return ``clip(factor * weight, lowest, highest)`` with the factor that makes the sum right.

    Where a bound binds, the other layers share the rest in proportion to their weights. The sum
    grows piecewise linearly with the factor, so that the factor is found exactly.

    Raises:
        ValueError: the bounds do not allow the total.
    """

    def at(factor: float) -> dict[str, float]:
        return {n: min(max(factor * w, lowest[n]), highest[n]) for n, w in weights.items()}

    ends = [b[name] / w for b in (lowest, highest) for name, w in weights.items() if w > 0]
    before, after = 0.0, max(ends, default=0.0)
    most = sum(highest[name] if w > 0 else lowest[name] for name, w in weights.items())
    if not sum(lowest.values()) <= total <= most:
        raise ValueError(f"scope: the layers cannot keep {total:,.0f} weights together")
    for end in sorted(ends):
        if sum(at(end).values()) >= total:
            after = end
            break
        before = end
    inside = {
        name
        for name, w in weights.items()
        if lowest[name] < (before + after) / 2 * w < highest[name]
    }
    if not inside:
        return at(after)
    fixed = sum(value for name, value in at((before + after) / 2).items() if name not in inside)
    return at((total - fixed) / sum(weights[name] for name in inside))


def whole_numbers(
    quotas: Mapping[str, float],
    kept: int,
    capacity: Mapping[str, int],
    lowest: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Round quotas by largest remainder: exactly ``kept`` in all, at most ``capacity`` of each.

    Each layer keeps at least ``lowest``. Without that argument, a layer with a positive quota keeps
    at least one weight if there are enough for all such layers. Where one of these bounds binds,
    the other quotas change in proportion. Equal remainders go to the earlier layer. Without binding
    bounds each count differs from its quota by less than one. (As with every such rule, one more
    weight in all can mean one fewer in some layer; in rounds within an earlier mask the capacities
    are what that mask has left.)

    Raises:
        ValueError: the quotas are no budget of ``kept`` weights.
    """
    _check(quotas, kept, capacity)
    if lowest is None:
        lowest = {n: int(q > 0 and capacity[n] > 0) for n, q in quotas.items()}
        if sum(lowest.values()) > kept:
            lowest = dict.fromkeys(quotas, 0)
    shares = dict(quotas)
    bound = any(not lowest[name] <= quota <= capacity[name] for name, quota in quotas.items())
    if bound or abs(sum(quotas.values()) - kept) > 0.5:
        shares = proportional(quotas, kept, _floats(lowest), _floats(capacity))
    counts = {name: math.floor(share + 10.0**-_DIGITS) for name, share in shares.items()}
    remainders = {name: round(shares[name] - counts[name], _DIGITS) for name in shares}
    by_remainder = sorted(remainders, key=lambda name: -remainders[name])  # stable
    for name in by_remainder[: kept - sum(counts.values())]:
        counts[name] += 1
    return counts


def _check(quotas: Mapping[str, float], kept: int, capacity: Mapping[str, int]) -> None:
    if set(quotas) != set(capacity):
        odd = sorted(set(quotas) ^ set(capacity))
        raise ValueError(f"scope: the budget is for other layers: {odd[0]!r} is only on one side")
    for name, quota in quotas.items():
        if not 0 <= quota < math.inf:
            raise ValueError(f"scope: the budget of {name!r} is {quota}, no number of weights")
    if abs(sum(quotas.values()) - kept) > max(0.5, 1e-9 * kept):
        raise ValueError(
            f"scope: the budgets sum to {sum(quotas.values()):,g}, not to the {kept:,} to keep"
        )


def _floats(counts: Mapping[str, int]) -> dict[str, float]:
    return {name: float(count) for name, count in counts.items()}


def _shortest(total: int, kept: int) -> str:
    """Return the sparsity with the fewest digits that keeps ``kept`` of ``total`` weights."""
    exact = 1 - kept / total
    texts = (f"{exact:.{digits}f}" for digits in range(1, 17))
    return next(
        text for text in texts
        if float(text) < 1 and kept_count(float(text), total) == kept
    )  # fmt: skip
