"""The command line that the scripts for tables, figures and reports share."""

import argparse
import json
from pathlib import Path
from typing import Any

from pai.errors import ConfigError
from pai.reports.collect import NONE
from pai.reports.grid import Layout


def parser(description: str, *, out: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; ``out`` is the help text of ``--out`` (``None``: no such option)."""
    made = argparse.ArgumentParser(description=description)
    add = made.add_argument
    add("folders", type=Path, nargs="+", help="sweep or run directories")
    add("--rows", default="scorer", help="groups or config keys, comma-separated (%(default)s)")
    add("--columns", default="sparsity", help="likewise (%(default)s)")
    add("--metric", default="test_accuracy", help="of the record's metrics (%(default)s)")
    add("--where", action="append", default=[], metavar="KEY=VALUE", help="select runs; repeatable")
    add("--ignore", action="append", default=[], metavar="KEY",
        help="config key in which runs may differ; repeatable")  # fmt: skip
    if out is not None:
        add("--out", type=Path, help=out)
    return made


def layout(arguments: argparse.Namespace) -> Layout:
    """Return what a parsed command line asks for.

    Raises:
        ConfigError: an option makes no sense.
    """
    where = {}
    for text in arguments.where:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"where: {text!r} is not KEY=VALUE")
        where[key] = _value(value)
    return Layout(
        rows=_keys(arguments.rows), columns=_keys(arguments.columns), metric=arguments.metric,
        where=where, ignore=tuple(arguments.ignore),
    )  # fmt: skip


def assignments(text: str) -> dict[str, str]:
    """Return the values of ``KEY=VALUE,KEY=VALUE``.

    Raises:
        ConfigError: it is something else.
    """
    found = {}
    for part in text.split(","):
        key, sign, value = part.strip().partition("=")
        if not (sign and key and value):
            raise ConfigError(f"{part!r} is not KEY=VALUE")
        found[key] = value
    return found


def _keys(text: str) -> tuple[str, ...]:
    return tuple(key.strip() for key in text.split(",") if key.strip())


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    if value is None:
        return NONE
    return value if isinstance(value, bool | int | float) else text
