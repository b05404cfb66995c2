"""What reaches the screen: no character that a terminal obeys, never the key of W&B.

Nobody has to read it: what counts is in files, so a closed pipe (``pai | head -1``) is no error.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

KEY_VARIABLE = "WANDB_API_KEY"
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, and those of Unicode that end lines or turn the direction of the text."""


def obeyed(text: str) -> bool:
    """Return whether ``text`` has a character that a shell or terminal obeys instead of showing."""
    return OBEYED.search(text) is not None


def shown(text: str) -> str:
    """Return ``text`` as it may be printed.

    What is no visible character is escaped, except ends of lines; the value of ``WANDB_API_KEY``
    is replaced by ``***``.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key:
        text = text.replace(key, "***")
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def one_line(text: str) -> str:
    """Return ``text`` as one line that may be printed."""
    return " ".join(shown(" ".join(text.split())).split())


class _Unread:
    """A text stream that goes on into nothing once the other end of its pipe is closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        with self._unless_closed():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write out what is buffered; Python does so at its end too."""
        with self._unless_closed():
            self._stream.flush()

    @contextmanager
    def _unless_closed(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())  # also for what is in its buffer
            os.close(nothing)


def need_no_reader() -> None:
    """Let this process outlive those who read what it prints."""
    if sys.stdout is not None and not isinstance(sys.stdout, _Unread):
        sys.stdout = _Unread(sys.stdout)
    if sys.stderr is not None and not isinstance(sys.stderr, _Unread):
        sys.stderr = _Unread(sys.stderr)
