"""Sharing out GPUs, with as many GPUs as the test says."""

import itertools
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tiny import environment

import pai.gpus
from pai.errors import ConfigError
from pai.gpus import a_gpu, jobs_per_gpu, own_gpu
from pai.plan import resolve_device


def test_jobs_go_to_the_gpu_with_the_fewest(tmp_path: Path) -> None:
    with ExitStack() as jobs:
        taken = [jobs.enter_context(a_gpu(["a", "b", "c"], tmp_path, 2)) for _ in range(6)]
    assert taken == [0, 1, 2, 0, 1, 2]


def test_gpus_are_known_by_what_they_are_not_by_their_number(tmp_path: Path) -> None:
    with a_gpu(["a", "b"], tmp_path, 1) as first, a_gpu(["b", "a", "c"], tmp_path, 1) as second:
        assert (first, second) == (0, 0)  # a and b: the other process sees them the other way round
        with a_gpu(["a", "b", "c"], tmp_path, 1) as third:
            assert third == 2


def test_without_gpus_a_job_has_none(tmp_path: Path) -> None:
    with a_gpu([], tmp_path, 1) as number:
        assert number is None
        assert own_gpu() is None
    assert list(tmp_path.iterdir()) == []


def test_a_job_waits_for_a_gpu_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pai.gpus, "_POLL_S", 0.001)
    with ExitStack() as first:
        first.enter_context(a_gpu(["a"], tmp_path, 1))
        with a_gpu(["a"], tmp_path, 1, first.close) as number:
            assert number == 0


JOB = """
import sys, time
from pathlib import Path
import pai.gpus
pai.gpus._POLL_S = 0.01
with pai.gpus.a_gpu(["a", "b"], Path("locks"), 1) as number:
    start = time.monotonic()
    time.sleep(0.1)
    print(number, start, time.monotonic())
"""


def test_processes_never_share_a_gpu(tmp_path: Path) -> None:
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB], cwd=tmp_path, env=environment(),
            stdout=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    spans = []
    for job in jobs:
        out, _ = job.communicate(timeout=60)
        number, start, end = out.split()
        spans.append((number, float(start), float(end)))
    assert {number for number, _, _ in spans} <= {"0", "1"}
    for number in ("0", "1"):
        mine = sorted((start, end) for gpu, start, end in spans if gpu == number)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(mine))


def test_auto_is_the_jobs_own_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with a_gpu(["a"], tmp_path, 1), a_gpu(["a", "b", "c"], tmp_path, 1):
        assert resolve_device("auto") == torch.device("cuda:1")
        assert resolve_device("cuda:2") == torch.device("cuda:2")
    assert resolve_device("auto") == torch.device("cuda")


def test_the_number_of_jobs_per_gpu_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs_per_gpu() == 1
    monkeypatch.setenv("PAI_JOBS_PER_GPU", "3")
    assert jobs_per_gpu() == 3
    for text in ("0", "many", "-1", ""):
        monkeypatch.setenv("PAI_JOBS_PER_GPU", text)
        with pytest.raises(ConfigError, match="PAI_JOBS_PER_GPU"):
            jobs_per_gpu()
