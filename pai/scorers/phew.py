"""PHEW: random walks from unit to unit that prefer large weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pai.objective import Batches, LossFn, Named, first_inputs
from pai.parallel import common_stream
from pai.scorers.base import Scorer
from pai.scorers.unit_graph import Step, trace
from pai.state import kept_weights, scoring_mode

_AT_ONCE = 4096  # walks, at least; more for large networks
_MOST_WALKS = 20  # per weight to be found; enough for 99 % of gaussian weights


@dataclass(frozen=True)
class Phew(Scorer):
    """The earlier a walk finds a weight, the higher its score; data-free.

    Walk 0 starts at the first unit of the input and goes to an output, walk 1 at the first unit of
    the output and goes back to an input, walk 2 at the second unit of the input, and so on in turn.
    At each layer a walk takes one of the weights of its unit, with probability ``|w| / sum |w|``
    over the weights that leave the unit (forward) or enter it (backward); a unit is a channel, and
    all positions of a kernel are weights of their own. The original walks until enough weights are
    found. Here the score of a weight is minus the number of the walk that found it, and its place
    in that walk, so that any count of highest scores is exactly the mask of the first walks.

    The walks end when a share ``coverage`` of the weights has been found, or after 20 walks for
    each of them; the rest follow in the order of ``|w|``. Masks of sparsity ``1 - coverage`` and
    above are thus the method's own.

    At a fork the branches are equally likely. A branch without weights (an identity shortcut) is
    not taken where another branch to the same addition has some, as in the authors' code. Supported
    are networks of convolutions, linear layers, activations, norms, pooling, additions,
    concatenations and flattening. Source: Patil and Dovrolis 2021, arXiv 2010.11354.

    Args:
        coverage: the share of the scored weights to find.

    Raises:
        ConfigError: an operation of the network has no walk (attention, gating); it is named.
    """

    coverage: float = 0.5
    remembers: ClassVar[bool] = True
    takes_whole_numbers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.coverage <= 1:
            raise ValueError(f"coverage must be above 0 and at most 1, got {self.coverage}")

    def check_network(self, build: Callable[[], nn.Module], inputs: Tensor) -> None:
        """Raise :class:`ConfigError` if there are no walks from unit to unit in the network."""
        model = build()
        with scoring_mode(model):
            trace(model, inputs[:1])

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Walk in blocks of walks; the input only tells the shape."""
        inputs = first_inputs(batches)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        walker = Walker(trace(model, inputs[:1]), weights, common_stream(generator))
        sizes = {name: p.numel() for name, p in parameters.items()}
        within = {n: k for n, k in kept_weights(parameters).items() if n in walker.reachable}
        there = sum(int((weights[n][k] != 0).sum()) for n, k in within.items())
        wanted = min(round(self.coverage * sum(sizes.values())), there)
        while walker.found(sizes) < wanted and walker.walks < _MOST_WALKS * wanted:
            walker.walk(max(_AT_ONCE, sum(sizes.values()) // 32 * 2))
        return {name: walker.order(name, p).to(p.device) for name, p in parameters.items()}


class Walker:
    """Walks through the units of a traced network, noting when each weight was first taken."""

    def __init__(
        self, steps: list[Step], weights: Mapping[str, Tensor], stream: torch.Generator
    ) -> None:
        self.walks = 0
        self._steps, self._stream = steps, stream
        self._next, self._previous = _routes(steps)
        self._forward: dict[int, Choice] = {}
        self._backward: dict[int, Choice] = {}
        self._first: dict[str, Tensor] = {}
        on_route = set(self._next) | {len(steps) - 1}
        for at, step in enumerate(steps):
            if step.kind == "weighted" and at in on_route and at in self._previous:
                weight = weights[step.weight]
                source, target = units_of(weight.shape, step.groups)
                size = weight.detach().cpu().double().abs().flatten()
                self._forward[at] = Choice(size, source, target)
                self._backward[at] = Choice(size, target, source)
                self._first.setdefault(step.weight, torch.full_like(size, torch.inf))

    @property
    def reachable(self) -> set[str]:
        """The parameters that walks pass."""
        return set(self._first)

    def found(self, names: Mapping[str, int]) -> int:
        """Return how many weights of ``names`` have been taken."""
        return sum(int(v.isfinite().sum()) for n, v in self._first.items() if n in names)

    def order(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores: minus the time of the first visit; below all of them by ``|w|``."""
        size = weight.detach().cpu().double().abs()
        never = size / (1 + size) - self.walks - 2
        if name not in self._first:
            return never
        first = self._first[name].view(weight.shape)
        return torch.where(first.isfinite(), -first, never)

    def walk(self, count: int) -> None:
        """Take ``count`` more walks, alternately forward and backward."""
        numbers = torch.arange(self.walks, self.walks + count)
        self._go(numbers[numbers % 2 == 0], forward=True)
        self._go(numbers[numbers % 2 == 1], forward=False)
        self.walks += count

    def _go(self, numbers: Tensor, *, forward: bool) -> None:
        last = len(self._steps) - 1
        start = 0 if forward else last
        routes = self._next if forward else self._previous
        waiting: dict[int, list[tuple[Tensor, Tensor]]] = {
            start: [(numbers, numbers // 2 % self._steps[start].units)]
        }
        for at in range(last + 1) if forward else range(last, -1, -1):
            if at not in waiting or at not in routes:
                continue
            walkers, units = (torch.cat(parts) for parts in zip(*waiting.pop(at), strict=True))
            if not forward and self._steps[at].kind == "concat":
                for to, who, there in self._apart(at, units):
                    waiting.setdefault(to, []).append((walkers[who], there))
                continue
            branch = torch.randint(len(routes[at]), walkers.shape, generator=self._stream)
            for number, to in enumerate(routes[at]):
                who = torch.nonzero(branch == number).flatten()
                edge = to if forward else at
                alive, there = self._pass(edge, (at, to), walkers[who], units[who], forward=forward)
                waiting.setdefault(to, []).append((walkers[who][alive], there))

    def _apart(self, at: int, units: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Return, for each operand of a concatenation, which of ``units`` are its own."""
        found, offset = [], 0
        for operand in self._steps[at].operands:
            size = self._steps[operand].units
            who = torch.nonzero((units >= offset) & (units < offset + size)).flatten()
            found.append((operand, who, units[who] - offset))
            offset += size
        return found

    def _pass(
        self, edge: int, ends: tuple[int, int], walkers: Tensor, units: Tensor, *, forward: bool
    ) -> tuple[Tensor, Tensor]:
        """Return which walkers get through operation ``edge``, and the units they get to."""
        step = self._steps[edge]
        everyone = torch.arange(len(walkers))
        if step.kind == "weighted":
            choice = (self._forward if forward else self._backward)[edge]
            draws = torch.rand(len(walkers), dtype=torch.float64, generator=self._stream)
            alive = torch.nonzero(choice.total[units] > 0).flatten()
            taken, there = choice(units[alive], draws[alive])
            place = (edge if forward else len(self._steps) - edge) / (len(self._steps) + 1)
            self._first[step.weight].scatter_reduce_(
                0, taken, walkers[alive].double() + place, "amin"
            )
            return alive, there
        if step.kind == "flatten":
            block = step.units // self._steps[step.operands[0]].units
            if not forward:
                return everyone, units // block
            inside = torch.randint(block, units.shape, generator=self._stream)
            return everyone, units * block + inside
        if step.kind == "concat":
            before = step.operands[: step.operands.index(ends[0])]
            return everyone, units + sum(self._steps[o].units for o in before)
        return everyone, units


class Choice:
    """Draws a weight of a unit with probability ``|w| / sum |w|``.

    Args:
        size: ``|w|``, flat.
        at: the unit that each weight belongs to.
        to: the unit that it leads to.
    """

    def __init__(self, size: Tensor, at: Tensor, to: Tensor) -> None:
        self._order = at.argsort(stable=True)
        self._to = to
        self._sums = size[self._order].cumsum(0)
        self._end = torch.bincount(at).cumsum(0)
        upper = self._sums[self._end - 1]
        self._base = torch.cat([upper.new_zeros(1), upper[:-1]])
        self.total = upper - self._base

    def __call__(self, units: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights that ``draws`` in [0, 1) take (flat), and where they lead."""
        values = self._base[units] + draws * self.total[units]
        position = torch.searchsorted(self._sums, values, right=True)
        taken = self._order[torch.minimum(position, self._end[units] - 1)]
        return taken, self._to[taken]


def units_of(shape: torch.Size, groups: int) -> tuple[Tensor, Tensor]:
    """Return the input unit and the output unit of each weight ``[O, I / groups, ...]``, flat."""
    outputs, inputs = shape[0], shape[1]
    positions = shape[2:].numel()
    target = torch.arange(outputs).repeat_interleave(inputs * positions)
    inside = torch.arange(inputs).repeat_interleave(positions).repeat(outputs)
    return target // (outputs // groups) * inputs + inside, target


def _routes(steps: list[Step]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Return from which tensor a walk may go where, forward and backward.

    Left out are shortcuts without weights beside a branch with some, and dead ends.
    """
    ancestors: list[set[int]] = []
    for step in steps:
        ancestors.append({a for o in step.operands for a in (o, *ancestors[o])})

    def bare(at: int) -> list[int]:
        """Return ``at`` and the tensors before it as long as nothing is weighted or merged."""
        chain = [at]
        while len(steps[at].operands) == 1 and steps[at].kind != "weighted":
            (at,) = steps[at].operands
            chain.append(at)
        return chain

    edges = set()
    for at, step in enumerate(steps):
        for operand in step.operands:
            others = [o for o in step.operands if o != operand] if step.kind == "merge" else []
            if not any(
                t in ancestors[other] and t not in bare(other)
                for other in others
                for t in bare(operand)
            ):
                edges.add((operand, at))
    last = len(steps) - 1
    out, reached = {last}, {0}
    for a, b in sorted(edges, reverse=True):
        out |= {a} if b in out else set()
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        reached |= {b} if a in reached else set()
    good = sorted((a, b) for a, b in edges if b in out and a in reached)
    forward: dict[int, list[int]] = {}
    backward: dict[int, list[int]] = {}
    for a, b in good:
        forward.setdefault(a, []).append(b)
        backward.setdefault(b, []).append(a)
    return forward, backward
