"""The YAML library from Python: the same names and options as on the command line."""

from typing import Any

from pai.errors import nearest
from pai.paths import config_folder


def available(group: str) -> list[str]:
    """Return the names in ``conf/<group>``, sorted."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def available_scorers() -> list[str]:
    """Return the names of all scorers."""
    return available("scorer")


def load_scorer(name: str, **options: Any) -> Any:
    """Return the scorer ``conf/scorer/<name>.yaml`` with some options replaced.

    Args:
        name: one of :func:`available_scorers`.
        options: as in the YAML file, for instance ``num_probes=50``.

    Returns:
        A :class:`pai.scorers.base.Scorer`: call it with a model and batches.

    Raises:
        ValueError: unknown name, unknown option, or an option out of range.

    Example:
        >>> load_scorer("hts", num_probes=50).estimator.num_probes
        50
    """
    return load("scorer", name, **options)


def load_schedule(name: str, **options: Any) -> Any:
    """Return the pruning schedule ``conf/schedule/<name>.yaml``; errors as in `load_scorer`."""
    return load("schedule", name, **options)


def load(group: str, name: str, **options: Any) -> Any:
    """Return what ``conf/<group>/<name>.yaml`` describes, instantiated."""
    from omegaconf import OmegaConf

    from pai.components import build

    choices = available(group)
    if name not in choices:
        raise ValueError(
            f"{group}: {name!r} is not one of {', '.join(choices)}{nearest(name, choices)}"
        )
    node: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / group / f"{name}.yaml"))
    node.pop("defaults", None)
    known = [key for key in node if not key.startswith("_")]
    for key in options:
        if key not in known:
            raise ValueError(
                f"{group} {name} has no option {key!r}; it has {', '.join(known) or 'none'}"
                f"{nearest(key, known)}"
            )
    return build(group, node | options)
