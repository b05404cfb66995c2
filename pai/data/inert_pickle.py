"""Reading numbers out of a pickle without unpickling it.

A pickle is a program. Here its instructions (as listed by the standard library's ``pickletools``,
which only parses) are followed as far as they put data together; nothing that the file names is
ever imported or called. What it would have called stays a :class:`Call` to look at.
"""

import pickletools
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Call:
    """What a pickle would have made: the dotted name of a callable, arguments, and a state."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")
_MARK = object()


def parse(content: bytes) -> Any:
    """Return the data in a pickle of protocol 2: numbers, bytes, lists, dicts, tuples, calls.

    Strings of Python 2 are returned as bytes.

    Raises:
        ValueError: the file is damaged, or uses instructions that plain arrays do not need.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                (result,) = stack
                return result
            _follow(opcode.name, argument, stack, memo)
    except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no pickle of plain arrays: {error}") from error
    raise ValueError("no pickle of plain arrays: it has no end")


def _follow(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name == "PROTO":
        return
    if name == "MARK":
        stack.append(_MARK)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _NUMBERS:
        stack.append(argument)
    elif name in ("SHORT_BINSTRING", "BINSTRING"):
        stack.append(argument.encode("latin-1"))
    elif name == "GLOBAL":
        stack.append(Call(argument.replace(" ", ".")))
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
        stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        size = int(name[-1])
        stack[-size:] = [tuple(stack[-size:])]
    else:
        _combine(name, stack)


def _combine(name: str, stack: list[Any]) -> None:
    """Follow an instruction that takes its operands from the stack."""
    if name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name == "APPEND":
        last = stack.pop()
        stack[-1].append(last)
    elif name == "APPENDS":
        values = _since_mark(stack)
        stack[-1].extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        values = _since_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        target = stack[-1].items if isinstance(stack[-1], Call) else stack[-1]
        target.update(zip(values[::2], values[1::2], strict=True))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments = stack.pop()
        stack.append(Call(stack.pop().name, tuple(arguments)))
    elif name == "BUILD":
        state = stack.pop()
        stack[-1].state = state
    else:
        raise ValueError(f"instruction {name}")


def _since_mark(stack: list[Any]) -> list[Any]:
    position = max(number for number, value in enumerate(stack) if value is _MARK)
    values = stack[position + 1 :]
    del stack[position:]
    return values
