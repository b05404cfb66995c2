"""The Makefile's tables and the experiments belong together."""

import re

from tiny import CHECKOUT

MAKEFILE = (CHECKOUT / "Makefile").read_text()


def test_every_table_of_the_makefile_is_an_experiment_and_the_other_way_round() -> None:
    calls = re.findall(r"^table-(\S+): .*\n\t\$\(call table,(\w+),runs/(\w+)\)$", MAKEFILE, re.M)
    assert all(name.replace("-", "_") + "_table" == experiment == folder
               for name, experiment, folder in calls)  # fmt: skip
    there = {path.stem for path in (CHECKOUT / "conf" / "experiment").glob("*_table.yaml")}
    assert {experiment for _, experiment, _ in calls} == there - {"paper_table", "default_table"}


def test_every_table_is_listed_and_documented() -> None:
    listed = re.search(r"^TABLES := ((?:.*\\\n)*.*)$", MAKEFILE, re.M)
    assert listed is not None
    names = set(listed[1].replace("\\", "").split())
    assert names == set(re.findall(r"^table-(\S+): .*\n\t\$\(call", MAKEFILE, re.M))
    page = (CHECKOUT / "docs" / "tables.md").read_text()
    assert {name for name in names if f"`table-{name}`" not in page} == set()
