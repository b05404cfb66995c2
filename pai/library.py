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


def default_schedule(scorer: str) -> Any:
    """Return the pruning schedule that ``conf/scorer/<scorer>.yaml`` selects; else one round.

    Raises:
        ValueError: unknown scorer.

    Example:
        >>> default_schedule("synflow").rounds
        100
    """
    from omegaconf import OmegaConf

    _check_name("scorer", scorer)
    node: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / f"scorer/{scorer}.yaml"))
    chosen = [
        choice
        for entry in node.get("defaults", [])
        if isinstance(entry, dict)
        for key, choice in entry.items()
        if key.split("@")[0] == "override /schedule"
    ]
    return load_schedule(chosen[0] if chosen else "oneshot")


def load(group: str, name: str, **options: Any) -> Any:
    """Return what ``conf/<group>/<name>.yaml`` describes, instantiated."""
    from omegaconf import OmegaConf

    from pai.components import build

    _check_name(group, name)
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


def _check_name(group: str, name: str) -> None:
    choices = available(group)
    if name not in choices:
        raise ValueError(
            f"{group}: {name!r} is not one of {', '.join(choices)}{nearest(name, choices)}"
        )
