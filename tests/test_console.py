"""What is printed cannot steer a terminal, and does not hold the key of W&B."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pai.console import obeyed, one_line, shown

KEY = "0123456789abcdef0123456789abcdef01234567"


@given(st.text())
def test_what_is_shown_is_printable(text: str) -> None:
    assert all(character.isprintable() or character == "\n" for character in shown(text))
    assert one_line(text).isprintable()
    assert not obeyed(one_line(text))


def test_plain_text_is_shown_as_it_is() -> None:
    text = "größer als 0,9 \\ 'x'\nzweite Zeile: 中文"
    assert shown(text) == text
    assert one_line(text) == text.replace("\n", " ")
    assert not obeyed(text.replace("\n", " "))


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\u202e", "\r", "\x00", "\u2028", "\x9b"])
def test_what_a_terminal_obeys_is_escaped(character: str) -> None:
    assert obeyed(f"a{character}b")
    assert re.fullmatch(r"a\\(x|u|r)[0-9a-f]*b", shown(f"a{character}b"))


def test_the_key_of_wandb_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(KEY) == KEY
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert shown(f"a {KEY}\n{KEY}") == "a ***\n***"
    assert one_line(f"scorer: '{KEY}' is\nno choice") == "scorer: '***' is no choice"
