"""Checks that several data sets share."""

from pathlib import Path

from pai.errors import ConfigError


def check_fraction(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``0 < value < 1``."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1 (exclusive), got {value}")


def usable_path(key: str, text: str) -> Path:
    """Return the path ``text`` with its ``~`` replaced, whether or not something is there.

    Raises:
        ConfigError: nothing can be there: the name is too long, a folder above it may not be
            entered, or ``~`` is of nobody; names ``key``.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{key}: {text} cannot be read: {reason}") from error
    return path
