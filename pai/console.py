"""What reaches the screen: no character that a terminal obeys, never the key of W&B."""

import os
import re

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
