"""The two ways a run can end badly: the user's mistake (exit 2) and failed work (exit 1)."""

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class ConfigError(ValueError):
    """The user asked for something that cannot be: named before any expensive work starts."""


class RunError(RuntimeError):
    """The work itself failed: what was computed so far stays, and the run can be resumed.

    Args:
        message: what failed.
        repeats: whether it would fail again in the same way, as all follows from the configuration.
    """

    def __init__(self, message: str, *, repeats: bool = False) -> None:
        super().__init__(message)
        self.repeats = repeats


class Stopped(KeyboardInterrupt):
    """A signal, which is named, asked the run to end.

    A class of its own, because Python (3.11 at least, ``python -m``) exits as killed by SIGINT once
    a plain ``KeyboardInterrupt`` has passed an ``exec``, however it was handled later.
    """


def nearest(word: str, choices: Iterable[object]) -> str:
    """Return ``"; did you mean 'x'?"`` for the choice most like ``word``, or an empty string.

    Capitals do not count; a choice that begins with ``word`` is like it.
    """
    names, given = {str(choice).lower(): str(choice) for choice in choices}, str(word).lower()
    found = difflib.get_close_matches(given, names, n=1)
    if not found and given:
        found = [name for name in names if name.startswith(given)]
    return f"; did you mean {names[found[0]]!r}?" if found else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def told(error: BaseException) -> str:
    """Return class, first line and place of an error in somebody else's code.

    The place is the innermost line of code that is neither installed nor of ``pai``; the message of
    a ``SyntaxError`` has it already.
    """
    text = first_line(error)
    text = text if text == type(error).__name__ else f"{type(error).__name__}: {text}"
    installed = (str(Path(__file__).parent), sysconfig.get_path("stdlib"))
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file()
        and "site-packages" not in Path(frame.filename).parts
        and not frame.filename.startswith(installed)
    ]
    if isinstance(error, SyntaxError) or not own:
        return text
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})"
