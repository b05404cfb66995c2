"""The Makefile's tables and the experiments belong together."""

import re
import shutil
import subprocess

import pytest
from tiny import CHECKOUT

MAKEFILE = (CHECKOUT / "Makefile").read_text()


def listed() -> list[str]:
    found = re.search(r"^TABLES := ((?:.*\\\n)*.*)$", MAKEFILE, re.M)
    assert found is not None
    return found[1].replace("\\", "").split()


def experiment(table: str) -> str:
    return table.replace("-", "_") + "_table"


def test_every_table_of_the_makefile_is_an_experiment_and_the_other_way_round() -> None:
    there = {path.stem for path in (CHECKOUT / "conf" / "experiment").glob("*_table.yaml")}
    assert {experiment(table) for table in listed()} == there - {"paper_table", "default_table"}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_table_runs_its_experiment_in_a_folder_of_that_name() -> None:
    for table in listed():
        shown = subprocess.run(
            ["make", "--dry-run", f"table-{table}"], cwd=CHECKOUT,
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        found = re.findall(r"scripts/sweeps.sh (\S+) runs/(\S+)", shown)
        assert found == [(experiment(table), experiment(table))]


def test_every_table_is_listed_and_documented() -> None:
    explained = re.findall(r"^table-(\S+):  ## ", MAKEFILE, re.M)
    assert sorted(explained) == sorted(listed())
    page = (CHECKOUT / "docs" / "tables.md").read_text()
    assert {name for name in listed() if f"`table-{name}`" not in page} == set()


def test_every_study_has_a_page_a_target_and_experiments() -> None:
    found = re.search(r"^STUDIES := (.*)$", MAKEFILE, re.M)
    assert found is not None
    pages = {path.stem: path.read_text() for path in (CHECKOUT / "docs" / "studies").glob("*.md")}
    targets = set(re.findall(r"^study-(\w+): .*## ", MAKEFILE, re.M))
    assert set(found[1].split()) == targets >= set(pages)
    assert {name for name, text in pages.items() if f"make study-{name}" not in text} == set()
    there = {path.stem for path in (CHECKOUT / "conf" / "experiment").glob("study_*.yaml")}
    run = "".join(pages.values()) + MAKEFILE
    inherited = {"study_tasks", "study_tasks_full"}
    assert {name for name in there - inherited if not re.search(rf"{name}\b", run)} == set()
