"""Whom a configuration may name: components of ``pai``, and packages that the user trusts.

Components of a run are built by :mod:`pai.components`, if :func:`distrust` has nothing against it;
what Hydra builds itself is checked by :mod:`pai.hydra_settings`.
"""

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

from pai.errors import ConfigError, nearest
from pai.paths import config_folder

TRUST_VARIABLE = "PAI_TRUSTED_PACKAGES"


def trusted_packages() -> set[str]:
    """Return ``pai`` and the packages that the user trusts (``PAI_TRUSTED_PACKAGES``)."""
    named = (package.strip() for package in os.environ.get(TRUST_VARIABLE, "").split(","))
    return {"pai", *filter(None, named)}


@functools.cache
def own_components() -> frozenset[str]:
    """Return the dotted paths of ``pai`` that may be named: those that its own ``conf/`` names."""
    texts = [path.read_text() for path in config_folder().rglob("*.yaml")]
    return frozenset(re.findall(r"\b_target_: *(pai\.[\w.]+)", "\n".join(texts)))


def distrust(path: Any) -> str:
    """Return why a configuration may not name the dotted ``path``, or an empty string.

    Of ``pai`` it may name components, not other functions, which could write files. Packages that
    the user trusts are trusted as a whole.
    """
    package = path.split(".")[0] if isinstance(path, str) else None
    if package not in trusted_packages():
        return (
            f"is not in a trusted package ({', '.join(sorted(trusted_packages()))}); to trust "
            f"another, name it in the environment variable {TRUST_VARIABLE}"
        )
    if package == "pai" and path not in own_components():
        known = own_components()
        return f"is no component of pai, which are those that its conf/ names{nearest(path, known)}"
    return ""


def check_search_path(folders: Any) -> None:
    """Raise :class:`ConfigError` unless ``hydra.searchpath`` names folders as they are written.

    Hydra would import a package that it names, and follows it before anything else is known.
    """
    for folder in folders if isinstance(folders, list) else [folders]:
        text = str(folder)
        scheme = re.match(r".*://", text, re.DOTALL)
        if scheme and scheme[0] != "file://":
            raise ConfigError(
                f"hydra.searchpath: {scheme[0]} is not for folders; use file:///FOLDER or "
                f"--config-dir"
            )
        if "${" in text:
            raise ConfigError(f"hydra.searchpath: {text!r}: write the folder out")


def hidden_targets(key: str, node: Any) -> list[str]:
    """Return each ``_target_`` in options where no component is expected, one phrase each.

    A component is an option of a component; one inside a list or a dictionary is never built, but
    whoever resolves the configuration later might build it.
    """
    if isinstance(node, list):
        return [fault for n, item in enumerate(node) for fault in _hidden(f"{key}.{n}", item)]
    if not isinstance(node, Mapping):
        return []
    inside = hidden_targets if "_target_" in node else _hidden
    return [fault for name, item in node.items() for fault in inside(f"{key}.{name}", item)]


def _hidden(key: str, node: Any) -> list[str]:
    if isinstance(node, Mapping) and "_target_" in node:
        return [f"{key}._target_: {node['_target_']!r}: no component is expected here"]
    return hidden_targets(key, node)
