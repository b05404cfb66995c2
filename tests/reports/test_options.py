"""The scripts' command line."""

import pytest

from pai.errors import ConfigError
from pai.reports.grid import Layout
from pai.reports.options import layout, parser


def parsed(*arguments: str) -> Layout:
    return layout(parser("").parse_args(["folder", *arguments]))


def test_rows_and_columns_are_lists_of_keys() -> None:
    assert parsed() == Layout()
    made = parsed("--rows", "scorer, warmup", "--columns", "sparsity", "--metric", "test_loss")
    assert (made.rows, made.columns, made.metric) == (
        ("scorer", "warmup"), ("sparsity",), "test_loss",
    )  # fmt: skip


def test_conditions_are_numbers_truths_or_names() -> None:
    made = parsed(
        "--where", "sparsity=0.90", "--where", "warmup=none", "--where", "include_classifier=true",
        "--where", "model.name=a=b", "--where", "x=[1]", "--where", "clip=null",
        "--ignore", "dataset.root",
    )  # fmt: skip
    assert made.where == {
        "sparsity": 0.9, "warmup": "none", "include_classifier": True, "model.name": "a=b",
        "x": "[1]", "clip": "none",
    }  # fmt: skip
    assert made.ignore == ("dataset.root",)


@pytest.mark.parametrize("text", ["scorer", "=snip"])
def test_a_condition_needs_key_and_value(text: str) -> None:
    with pytest.raises(ConfigError, match="is not KEY=VALUE"):
        parsed("--where", text)
