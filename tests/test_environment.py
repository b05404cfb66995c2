"""What the record says of the machine."""

from pathlib import Path

import pytest
from tiny import CHECKOUT, python

JOBS = """
from pathlib import Path

import torch

from pai.scorers.magnitude import Magnitude
from tiny import tiny_run


class Greedy(Magnitude):
    def score(self, *arguments, **options):
        torch.ones(200 * 2**20, dtype=torch.uint8)
        return super().score(*arguments, **options)


for place, scorer in (("a", Magnitude()), ("b", Greedy()), ("c", Magnitude())):
    print(tiny_run(Path(place), scorer=scorer)["peak_memory_gib"])
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks of a process begin anew on Linux"
)
def test_the_peak_of_a_run_is_its_own(tmp_path: Path) -> None:
    done = python("-c", JOBS, cwd=tmp_path, PYTHONPATH=f"{CHECKOUT}:{CHECKOUT / 'tests'}")
    assert done.returncode == 0, done.stderr
    before, greedy, after = (float(line) for line in done.stdout.splitlines())
    assert greedy - before > 0.15  # GiB, of 0.195
    assert greedy - after > 0.15
