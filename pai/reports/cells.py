"""Cells of CSV files that spreadsheets open."""

import re
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t")
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}( {_NUMBER})*\Z")


def no_formula(value: Any) -> Any:
    """Return ``value`` so that no spreadsheet takes it for a formula and computes it.

    Text may come from anybody's configuration (``+seeds.data=1`` is the name of a run). If it
    begins like a formula it gets an apostrophe in front; numbers, also several with spaces between
    them, stay as they are. A carriage return, which would begin a line, becomes a space.

    Example:
        >>> no_formula("=1+1"), no_formula("-0.5 2e-3"), no_formula(-0.5)
        ("'=1+1", '-0.5 2e-3', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _NUMBERS.match(text) else text
