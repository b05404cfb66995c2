import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = (
    "model.depth=8 model.width=4 training.epochs=0 scoring.samples_per_class=1 warmup=none "
    "sparsity=0.5 seed=0 hydra.job_logging.handlers.console.level=WARNING"
)


def sweeps(folder: Path, *jobs: str, options: str = TINY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/sweeps.sh", "smoke_table", folder, *jobs, "--", "--rows", "scorer"],
        env=os.environ | {"PYTHON": sys.executable, "OPTIONS": options},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_all_jobs_and_the_report_are_made_and_nothing_twice(tmp_path: Path) -> None:
    first = sweeps(tmp_path, "scorer=snip", "scorer=random,magnitude")
    assert first.returncode == 0, first.stderr
    records = sorted(tmp_path.glob("*/record.json"))
    assert len(records) == 3 and (tmp_path / "report.html").exists()
    assert all(name in first.stdout for name in ("snip", "random", "magnitude"))
    before = [record.stat().st_mtime_ns for record in records]
    assert sweeps(tmp_path, "scorer=snip").returncode == 0
    assert [record.stat().st_mtime_ns for record in records] == before


def test_a_mistake_ends_at_once(tmp_path: Path) -> None:
    done = sweeps(tmp_path, "scorer=nothing", "scorer=random")
    assert done.returncode == 2
    assert "nothing" in done.stderr and not list(tmp_path.glob("*/record.json"))
    assert not (tmp_path / "report.html").exists()


def test_a_dry_run_lists_the_jobs_and_makes_no_report(tmp_path: Path) -> None:
    done = sweeps(tmp_path / "sweep", "scorer=random", options=f"{TINY} --dry-run")
    assert done.returncode == 0, done.stderr
    assert "1 job: 0 done, 1 to run" in done.stdout
    assert not (tmp_path / "sweep").exists()
