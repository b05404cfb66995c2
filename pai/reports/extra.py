"""The libraries of the optional extra ``reports``."""

import importlib.util

from pai.errors import ConfigError


def require(*modules: str) -> None:
    """Check that ``modules`` can be imported.

    Raises:
        ConfigError: one cannot; the message names the extra that installs it.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: not installed; tables, figures and reports need pai's extra "
            f"'reports': pip install 'pai[reports]'"
        )
