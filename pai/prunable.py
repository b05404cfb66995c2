"""Which parameters may be pruned: the weights of convolutions and linear layers, by module type."""

from collections.abc import Iterator
from typing import Any

from torch import nn

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
    dense unless ``include_classifier`` (Cohen et al., arXiv 2502.11450, leave it dense; SNIP and
    SynFlow prune it). A parameter shared by several modules appears once, under its first name,
    and counts as the classifier's if the classifier is one of them.

    Args:
        model: any module; it is not changed.
        include_classifier: also return the classifier's weight.
    """
    excluded = {}
    if not include_classifier:
        head = classifier(model)
        excluded = {id(p): p for p in head.parameters()} if head is not None else {}
    chosen = {id(parameter) for _, parameter in _weights(model)}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in chosen and id(parameter) not in excluded
    }


def classifier(model: nn.Module) -> nn.Module | None:
    """Return the module that computes the logits, or ``None`` if the model has no such layer.

    A timm model says so itself (``get_classifier``). Otherwise it is the prunable layer
    registered last, which is where every common model family puts its head.
    """
    get_classifier: Any = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        head = get_classifier()
        if isinstance(head, tuple | list):  # models with a distillation head
            head = nn.ModuleList(head)
        return head if isinstance(head, nn.Module) else None
    layers = [module for module, _ in _weights(model)]
    return layers[-1] if layers else None


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    for module in model.modules():
        names: tuple[str, ...] = ()
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            names = _WEIGHT_NAMES
        elif isinstance(module, nn.MultiheadAttention):
            names = _ATTENTION_WEIGHT_NAMES
        for name in names:
            parameter = getattr(module, name, None)
            if isinstance(parameter, nn.Parameter):
                yield module, parameter
