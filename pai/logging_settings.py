"""What a configuration may say about logging: plain formatters, the screen, a file in the run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from pai.components import STRICT, model_faults

_LEVELS = ("NOTSET", "DEBUG", "INFO", "WARNING", "WARN", "ERROR", "FATAL", "CRITICAL")
_COLOURED = "colorlog.ColoredFormatter"


class _Node(BaseModel):
    model_config = STRICT


class _Settings(_Node):
    """A whole node of logging; its parts are checked one by one."""

    version: Literal[1]
    formatters: dict[str, dict[str, Any]] = Field(default_factory=dict)
    handlers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    loggers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    root: dict[str, Any] | None
    disable_existing_loggers: bool = True


class _Formatter(_Node):
    kind: Literal["logging.Formatter"] = Field("logging.Formatter", alias="class")
    format: str | None = None
    datefmt: str | None = None
    style: Literal["%", "$"] = "%"


class _Coloured(_Node):
    called: Literal["colorlog.ColoredFormatter"] = Field(alias="()")
    format: str | None = None
    datefmt: str | None = None
    style: Literal["%", "$"] = "%"
    log_colors: dict[str, str] | None = None
    secondary_log_colors: dict[str, dict[str, str]] | None = None
    reset: bool = True


class _Handler(_Node):
    kind: str = Field(alias="class")
    level: str | int | None = None
    formatter: str | None = None


class _Stream(_Handler):
    stream: Literal["ext://sys.stdout", "ext://sys.stderr"] | None = None


class _File(_Handler):
    filename: str
    mode: Literal["a", "w"] = "a"
    encoding: Literal["utf-8"] | None = None
    delay: bool = False


class _Logger(_Node):
    level: str | int | None = None
    handlers: list[str] | None = None
    propagate: bool = True


_HANDLERS: dict[Any, type[_Handler]] = {
    "logging.StreamHandler": _Stream,
    "logging.FileHandler": _File,
    "logging.NullHandler": _Handler,
}


def logging_faults(key: str, node: Mapping[str, Any], run_dir: Path | None) -> list[str]:
    """Return what is wrong with the resolved settings of logging at ``key``, one phrase each.

    Args:
        key: where they stand.
        node: a dictionary for :func:`logging.config.dictConfig`.
        run_dir: where files may be written; nowhere if it is ``None``.
    """
    faults = model_faults(key, _Settings, node)
    if faults or node["root"] is None:  # then Hydra leaves logging as it is
        return faults
    formatters, handlers = node.get("formatters", {}), node.get("handlers", {})
    for name, formatter in formatters.items():
        faults += _formatter_faults(f"{key}.formatters.{name}", formatter)
    for name, handler in handlers.items():
        place = f"{key}.handlers.{name}"
        faults += _handler_faults(place, handler, run_dir)
        faults += _level_faults(place, handler.get("level"))
        faults += _absent(f"{place}.formatter", handler.get("formatter"), formatters)
    loggers = {f"loggers.{name}": logger for name, logger in node.get("loggers", {}).items()}
    for name, logger in {"root": node.get("root") or {}, **loggers}.items():
        wrong = model_faults(f"{key}.{name}", _Logger, logger)
        faults += wrong or _level_faults(f"{key}.{name}", logger.get("level"))
        for handler in () if wrong else logger.get("handlers") or ():
            faults += _absent(f"{key}.{name}.handlers", handler, handlers)
    return faults


def _formatter_faults(key: str, node: Mapping[str, Any]) -> list[str]:
    faults = model_faults(key, _Coloured if "()" in node else _Formatter, node)
    if faults:
        return faults
    try:
        logging.Formatter(node.get("format"), node.get("datefmt"), node.get("style", "%"))
    except ValueError as error:
        return [f"{key}.format: {node.get('format')!r} cannot be used: {error}"]
    return []


def _handler_faults(key: str, node: Mapping[str, Any], run_dir: Path | None) -> list[str]:
    kind = node.get("class")
    if not isinstance(kind, str) or kind not in _HANDLERS:
        return [f"{key}.class: {kind!r} is not one of {', '.join(_HANDLERS)}"]
    faults = model_faults(key, _HANDLERS[kind], node)
    if faults or kind != "logging.FileHandler":
        return faults
    file = Path(node["filename"])
    if run_dir is None or file.parent != run_dir.absolute() or file.suffix != ".log":
        return [
            f"{key}.filename: {node['filename']!r} is no file *.log directly in the directory of "
            f"the run (${{hydra.runtime.output_dir}}/NAME.log, below hydra.job_logging)"
        ]
    return []


def _level_faults(key: str, level: Any) -> list[str]:
    if level is None or type(level) is int or level in _LEVELS:
        return []
    return [f"{key}.level: {level!r} is not one of {', '.join(_LEVELS)}"]


def _absent(key: str, name: str | None, known: Mapping[str, Any]) -> list[str]:
    if name is None or name in known:
        return []
    return [f"{key}: {name!r} is not there (there are: {', '.join(known) or 'none'})"]
