"""PX: the weights that carry an upper bound on the trace of the neural tangent kernel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pai.errors import ConfigError
from pai.memory import chunks
from pai.objective import Batches, LossFn, Named, first_inputs, gradients, outputs_with
from pai.parallel import add_up
from pai.prunable import classifier, prunable_parameters, require_real
from pai.scorers.base import Scorer
from pai.state import buffers_without_means, dense_weights, kept_weights, scoring_mode

_RELU = (F.relu, torch.relu, Tensor.relu)
_RELU_IN_PLACE = (F.relu_, torch.relu_, Tensor.relu_)
_TOLERANCE = 1e-9
_MAGNITUDES = 10.0 ** torch.arange(-3, 7, dtype=torch.float64)


@dataclass(frozen=True)
class Px(Scorer):
    """``|v dR/dv|`` with ``v = w^2`` and ``R = sum_k A_k B_k`` over the classes k.

    A path runs from an input to an output through one weight of each layer it passes.
    ``A_k = sum_n sum_{paths p to k} a_p(x_n) x_{n,p}^2`` counts the paths that are active for
    sample n (all ReLUs on them are on, all max poolings choose them), weighted by the squared input
    where they start; ``B_k = sum_{paths p to k} prod_{w in p} w^2``. With ``classifier="squared"``,
    ``sum_k A_k`` and ``sum_w dB/d(w^2)`` (B the sum of the ``B_k``) are the squared Frobenius norms
    of the two factors of the network's Jacobian, outputs by paths and paths by weights. Their
    product bounds the trace of the neural tangent kernel, and all scores are sums of positive
    terms.

    **A dense classifier makes "squared" blind to the data**: all its paths count alike in A, so
    all ``A_k`` are equal and the ranking is that of ``v dB/dv`` (SynFlow's with squared weights).
    The authors' code takes the classifier's weights as they are, sign included, in A and in B. That
    is ``"signed"``, the default; its scores need not be positive before ``|.|``.

    BatchNorm, in eval mode, belongs to the paths: its shift is left out, its scale is 1 in A and
    squared in B (the code runs it in train mode). Computed in float64. One round takes a forward
    pass for the gates, one for A, and a gradient pass on a single input for B; ``scorer=px``
    selects 100 rounds. Source: Iurada et al. 2024, arXiv 2406.01820.

    Args:
        classifier: how the final layer enters.

    Raises:
        ConfigError: the network is no sum over paths: it has other things in it than affine layers,
            BatchNorm, ReLU, pooling and additions.
    """

    classifier: Literal["signed", "squared"] = "signed"
    remembers: ClassVar[bool] = True
    takes_whole_numbers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.classifier not in ("signed", "squared"):
            raise ValueError(f"classifier must be 'signed' or 'squared', got {self.classifier!r}")

    def check_network(self, build: Callable[[], nn.Module], inputs: Tensor) -> None:
        """Raise :class:`ConfigError` if the network's function is no sum over paths."""
        model = build()
        batches = [(inputs[:1], torch.zeros(1, dtype=torch.long))]
        parameters = prunable_parameters(model, include_classifier=True)
        with scoring_mode(model):
            self.score(model, batches, parameters, loss_fn=None, generator=None)

    def score(
        self, model: nn.Module, batches: Batches, parameters: Mapping[str, nn.Parameter], *,
        loss_fn: LossFn | None, generator: torch.Generator | None,
    ) -> Named:  # fmt: skip
        """Follow the active paths of the data, then differentiate the sum over all paths."""
        require_real(dict(model.named_parameters()), "scorer", "use another scorer than px")
        last = classifier(model)
        head = set(last.parameters()) if last and self.classifier == "signed" else set()
        every = prunable_parameters(model, include_classifier=True) | dict(parameters)
        keep = kept_weights(every)
        ones, values = _plain(model, torch.ones_like), _plain(model, torch.square)
        for name, weight in dense_weights(every).items():
            signed, kept = every[name] in head, keep[name].double()
            ones[name] = kept * (weight.double() if signed else 1)
            values[name] = kept * (weight.double() if signed else weight.double().square())
            values[name].requires_grad_(name in parameters)

        def all_paths(x: Tensor) -> Tensor:
            with _Open():
                return outputs_with(model, values, x)

        active, shape = self._active(model, ones, batches)
        _check_linear(model, shape, active.device)
        bound = (active * all_paths(torch.ones(shape, dtype=torch.float64).to(active.device))).sum()
        scored = {name: values[name] for name in parameters}
        slope = gradients(bound, scored)
        return {
            name: (slope[name] * (w if every[name] in head else w * w)).abs()
            for name, w in ((n, w.double()) for n, w in dense_weights(parameters).items())
        }

    @staticmethod
    @torch.no_grad()
    def _active(model: nn.Module, ones: Named, batches: Batches) -> tuple[Tensor, Sequence[int]]:
        """Return ``A`` up to a factor, and the shape of one input."""
        total: Tensor | None = None
        shape: Sequence[int] = ()
        samples = 0
        for inputs, targets in chunks(model, batches, copies=2.0):
            with _Record() as record:
                model(inputs)
            with _Replay(record.gates):
                out = outputs_with(model, ones, inputs.double().square()).sum(0)
            total = out if total is None else total + out
            shape = (1, *inputs.shape[1:])
            samples += len(targets)
        if total is None:  # no sample for this process, or none at all
            first = first_inputs(batches)
            shape = (1, *first.shape[1:])
            total = torch.zeros_like(model(first[:1])[0], dtype=torch.float64)
        add_up([{"A": total}], samples)
        largest = total.abs().max()
        return (total / largest if largest > 0 else total), shape


def _plain(model: nn.Module, function: Callable[[Tensor], Tensor]) -> Named:
    """Return float64 parameters and buffers: ``function`` of each scale, shifts zero.

    BatchNorm's scale is its weight over its standard deviation.
    """
    state = buffers_without_means(model)
    for name, p in model.named_parameters():
        value = p.detach().double()
        state[name] = torch.zeros_like(value) if name.endswith("bias") else function(value)
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None:
            name = f"{prefix}.running_var" if prefix else "running_var"
            deviation = (module.running_var.double() + module.eps).sqrt()
            state[name] = function(deviation).square() - module.eps
    return state


def _check_linear(model: nn.Module, shape: Sequence[int], device: torch.device) -> None:
    """Raise :class:`ConfigError` unless the network is linear once all gates are open.

    Inputs and weights are random, of both signs, and the inputs of several magnitudes: a gate that
    this module does not replace is closed somewhere.
    """
    stream = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream, dtype=torch.float64).to(device)

    state = _plain(model, torch.ones_like)
    for name, p in model.named_parameters():
        if not name.endswith("bias"):
            state[name] = draw(*p.shape) / max(1, p.shape[1:].numel()) ** 0.5
    sizes = _MAGNITUDES.to(device).view(-1, *[1] * (len(shape) - 1))
    first, second = (sizes * draw(len(sizes), *shape[1:]) for _ in range(2))
    with torch.no_grad(), _Open():
        one, other, both = (
            outputs_with(model, state, x).flatten(1) for x in (first, second, first + second)
        )
    largest = torch.maximum(one.abs(), other.abs()).amax(1)
    if not bool(((one + other - both).abs().amax(1) <= _TOLERANCE * largest).all()):
        raise ConfigError(
            "scorer: px is for networks of affine layers, BatchNorm, ReLU (nn.ReLU, F.relu), "
            "pooling and additions; the function of this one is no sum over paths (px does not see "
            "the gates of other activations, nor of a ReLU that is written in another way)"
        )


class _Paths(TorchFunctionMode):
    """Replaces ReLU and 2-d max pooling wherever a network calls them."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RELU or func in _RELU_IN_PLACE:
            x, *rest = args
            in_place = func in _RELU_IN_PLACE or kwargs.get("inplace", False) or any(rest)
            out = self.relu(x)
            return x.copy_(out) if in_place and out is not x else out
        if func is F.max_pool2d:
            return self.max_pool(*args, **{**kwargs, "return_indices": False})
        return func(*args, **kwargs)

    def relu(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def max_pool(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError


class _Record(_Paths):
    """Computes as usual and notes the gates in order."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[Tensor] = []

    def relu(self, x: Tensor) -> Tensor:
        self.gates.append(x > 0)
        return x.clamp(min=0)

    def max_pool(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out, chosen = F.max_pool2d(x, *args, **{**kwargs, "return_indices": True})
        self.gates.append(chosen)
        return out


class _Replay(_Paths):
    """Applies gates that another network had."""

    def __init__(self, gates: list[Tensor]) -> None:
        super().__init__()
        self._gates = iter(gates)

    def relu(self, x: Tensor) -> Tensor:
        return x * next(self._gates)

    def max_pool(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        chosen = next(self._gates)
        return x.flatten(2).gather(2, chosen.flatten(2)).view_as(chosen)


class _Open(_Paths):
    """Lets every path through: no gates, sums in place of maxima."""

    def relu(self, x: Tensor) -> Tensor:
        return x

    def max_pool(self, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 dilation: Any = 1, ceil_mode: bool = False, **_: Any) -> Tensor:  # fmt: skip
        if dilation not in (1, (1, 1)):
            raise ConfigError("scorer: px does not know dilated max pooling")
        return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, divisor_override=1)
