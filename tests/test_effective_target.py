"""Runs that prune to an effective sparsity, and say so if it cannot be had."""

import logging
from pathlib import Path

import pytest
from tiny import tiny_run

SETTINGS = ("sparsity_is=effective", "training.epochs=0", "scorer=snip")


def test_an_effective_sparsity_below_that_of_the_dense_network_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pai"):
        # the last stage sees one pixel: eight of nine positions of its kernels are on no path
        record = tiny_run(tmp_path, *SETTINGS, "model.stem_stride=4", "sparsity=0.1")
    mask, target = record["mask"], record["scoring"]["effective_target"]
    assert mask["effective_sparsity"] > 0.3
    (warning,) = [line for line in caplog.messages if "effective sparsity" in line]
    assert warning == (
        f"the effective sparsity is {mask['effective_sparsity']:.4f}, not 0.1 as asked: "
        f"{target['effective']:,} weights are on paths from input to output where "
        f"{target['wanted']:,} are wanted; the dense network has no more"
    )


def test_one_that_can_be_had_is_not_worth_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pai"):
        record = tiny_run(tmp_path, *SETTINGS, "sparsity=0.7")
    assert record["mask"]["effective_sparsity"] == pytest.approx(0.7, abs=0.002)
    assert "effective sparsity" not in caplog.text
