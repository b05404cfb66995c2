"""Which parameters may be pruned: the weights of convolutions and linear layers, by module type."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pai.errors import ConfigError

_WEIGHT_NAMES = ("weight",)
_ATTENTION_WEIGHT_NAMES = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def prunable_parameters(
    model: nn.Module, *, include_classifier: bool = False
) -> dict[str, nn.Parameter]:
    """Return the prunable parameters of ``model`` by name, in the order of registration.

    Prunable are the weights of ``nn.Linear``, the ``nn.Conv*`` family and the packed projections
    of ``nn.MultiheadAttention``; biases, norms and embeddings are not. The final classifier stays
    dense unless ``include_classifier`` (Gollini Navarrete et al., arXiv 2502.11450, leave it
    dense; SNIP and SynFlow prune it). A parameter shared by several modules appears once, under
    its first name, and counts as the classifier's if the classifier is one of them.

    Layers whose weight is computed from other parameters (``weight_norm``, ``nn.utils.prune``) have
    none to prune; a warning names them.

    Args:
        model: any module; it is not changed.
        include_classifier: also return the classifier's weight.

    Raises:
        ValueError: a lazy module has no weight yet.
    """
    computed = [name for name, module in model.named_modules() if _is_computed(module)]
    if computed:
        warnings.warn(
            f"{', '.join(computed)}: not prunable, as the weight is computed from other "
            f"parameters (weight_norm, parametrizations, nn.utils.prune)", stacklevel=2,
        )  # fmt: skip
    excluded = {}
    if not include_classifier:
        head = classifier(model)
        excluded = {id(p): p for p in head.parameters()} if head is not None else {}
    chosen = {id(parameter) for layer in _layers(model) for parameter in _weights(layer)}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in chosen and id(parameter) not in excluded
    }


def chosen_or_prunable(
    model: nn.Module, parameters: Mapping[str, nn.Parameter] | None
) -> Mapping[str, nn.Parameter]:
    """Return ``parameters``, by default all that are prunable, that they may be scored.

    Raises:
        ValueError: there are none, or some are not the model's.
        ConfigError: some are complex (:func:`require_real`).
    """
    if parameters is None:
        parameters = prunable_parameters(model)
    if not isinstance(parameters, Mapping):
        raise ValueError(
            f"parameters must be a dict of parameters by name, got a {type(parameters).__name__}"
        )
    own = {id(parameter) for parameter in model.parameters()}
    for name, parameter in parameters.items():
        if id(parameter) not in own:
            raise ValueError(
                f"parameters: {name!r} is no parameter of this model (but of another one, or of "
                f"the one that it was copied from?); take them from the model that is scored"
            )
    if not parameters:
        raise ValueError(
            "the model has no prunable weights (the classifier's are left out: "
            "pai.prunable_parameters(model, include_classifier=True) has them)"
        )
    require_real(parameters, "parameters", "leave it out")
    return parameters


def check_scores(scores: object, parameters: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless ``scores`` are tensors by the names and in the shapes of these.

    A layer without scores would stay dense, and be missing from all counts.
    """
    if not isinstance(scores, Mapping):
        raise ValueError(
            f"a scorer returns a dict of tensors by parameter name; this one returned a "
            f"{type(scores).__name__}"
        )
    for name, parameter in parameters.items():
        if name not in scores:
            raise ValueError(f"the scorer returned no scores for {name!r}")
        found, wanted = getattr(scores[name], "shape", "none"), parameter.shape
        if found != wanted:
            raise ValueError(
                f"the scores of {name!r} have shape {found}, and its weights have {wanted}"
            )
    for name in scores:
        if name not in parameters:
            raise ValueError(f"the scorer returned scores for {name!r}, which it was not given")


def require_real(parameters: Mapping[str, Tensor], field: str, advice: str) -> None:
    """Raise :class:`ConfigError` if weights are complex numbers.

    Its message begins with what the user has given and ends with what to do.
    """
    for name, value in parameters.items():
        if value.is_complex():
            kind = str(value.dtype).removeprefix("torch.")
            raise ConfigError(f"{field}: weights must be real, and {name!r} is {kind}; {advice}")


def classifier(model: nn.Module) -> nn.Module | None:
    """Return the module that computes the logits, or ``None`` if the model has no such layer.

    A timm model says so itself: ``get_classifier()``, and ``pretrained_cfg["classifier"]``, which
    alone names the auxiliary head of VOLO. Otherwise it is the prunable layer registered last,
    which is where every common model family puts its head. Several heads (a distillation token's
    beside the class token's) come as one ``nn.ModuleList``. Wrappers for several devices are looked
    through.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if callable(getattr(model, "get_classifier", None)):
        heads = _timm_heads(model)
        return nn.ModuleList(heads) if len(heads) > 1 else next(iter(heads), None)
    layers = list(_layers(model))
    return layers[-1] if layers else None


def _timm_heads(model: Any) -> list[nn.Module]:
    """Return the heads that a timm model names, each once, without those inside another."""
    found = model.get_classifier()
    found = list(found) if isinstance(found, tuple | list) else [found]
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    modules = dict(model.named_modules())
    found += [modules.get(name) for name in ([named] if isinstance(named, str) else named)]
    heads = list(dict.fromkeys(head for head in found if isinstance(head, nn.Module)))
    inside = {part for head in heads for part in head.modules() if part is not head}
    return [head for head in heads if head not in inside]


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS, nn.MultiheadAttention)):
            yield module


def _weights(layer: nn.Module) -> Iterator[nn.Parameter]:
    attention = isinstance(layer, nn.MultiheadAttention)
    own = dict(layer.named_parameters(recurse=False))  # asking for a computed weight computes it
    for name in _ATTENTION_WEIGHT_NAMES if attention else _WEIGHT_NAMES:
        parameter = own.get(name)
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"the weight of {type(layer).__name__} has no shape yet: run the model on one "
                f"batch first"
            )
        if isinstance(parameter, nn.Parameter):
            yield parameter


def _is_computed(module: nn.Module) -> bool:
    """Return whether the weight of a layer is no parameter but made of others."""
    own = dict(module.named_parameters(recurse=False))
    return isinstance(module, (nn.Linear, *_CONVOLUTIONS)) and "weight" not in own
