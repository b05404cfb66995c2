"""Paths that can hold nothing: named before anything starts."""

import pytest
from tiny import TINY, check

from pai.errors import ConfigError

LONG = 300 * "x"
KINDS = {
    "imagefolder": "root", "imagefolder_streamed": "root", "imagenet": "root", "cifar10": "root",
    "tinyimagenet": "root", "cora": "root", "text": "path",
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "reason"),
    [(LONG, "File name too long"), ("~nobody.at.all/x", "Could not determine home directory.")],
    ids=["long", "nobody"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_path_that_can_hold_nothing_is_named(kind: str, path: str, reason: str) -> None:
    key = f"dataset.{KINDS[kind]}"
    with pytest.raises(ConfigError) as caught:
        check(*TINY[2:], f"dataset={kind}", f"{key}='{path}'")
    assert str(caught.value) == f"{key}: {path} cannot be read: {reason}"


def test_a_scope_that_can_be_no_path_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        check(*TINY, f"scope={LONG}")
    assert str(caught.value) == (
        f"scope: '{LONG}' is not one of global, layer, uniform_plus, erk, no pattern such as 2:4 "
        f"and no existing mask.safetensors or run directory"
    )
