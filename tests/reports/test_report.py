"""The report of a sweep in one file."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sweep_records import record, write
from tiny import CHECKOUT, python, tiny_run

from pai.errors import ConfigError
from pai.reports.collect import collect
from pai.reports.grid import Layout
from pai.reports.write import write_report

HOSTILE = "<script>alert('x')</script>\"|"


class Reader(HTMLParser):
    """Collects tags, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text())
    return reader


def test_the_page_is_one_file_with_everything_in_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        *(record("none", 0.0, s, 0.99) for s in (0, 1)),
        *(record("snip", 0.9, s, 0.5 + s / 10) for s in (0, 1)),
        *(record("hts", 0.9, s, 0.7 + s / 10) for s in (0, 1)),
        record("hts", 0.98, 0, status="failed", error="RunError: out of memory"),
    )
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "record.json").write_text("{")
    assert write_report(collect(tmp_path), Layout(), tmp_path / "out", "A sweep") is not None
    page = read(tmp_path / "out" / "report.html")
    assert len(page.links) == 3  # no run has left a histogram behind
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "script" not in page.tags
    assert page.tags.count("tr") > 20
    for words in (
        "7 runs: 6 completed, 1 failed; 1 records could not be read", "75.0 ± 7.1", "missing",
        "failed: RunError: out of memory", "is not a JSON object", "training.epochs",
        "a processor", "snip (2)",
    ):  # fmt: skip
        assert words in page.text, words
    plain = (tmp_path / "out" / "report.md").read_text()
    for words in ("| `hts` | **75.0 ± 7.1** (n=2) | missing |", "failed: RunError: out of memory",
                  "![Metric against sparsity"):  # fmt: skip
        assert words in plain, words
    for link in re.findall(r"\]\((.*?)\)", plain):
        assert (tmp_path / "out" / link).read_bytes().startswith(b"\x89PNG")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    write(
        tmp_path / HOSTILE.replace("/", "_"),
        record(HOSTILE, 0.9, 0, 0.5, config={"dataset": {HOSTILE: HOSTILE}}),
        record("snip", 0.9, 0, 0.5, status="failed", error=HOSTILE,
               config={"dataset": {HOSTILE: HOSTILE}}),
    )  # fmt: skip
    write_report(collect(tmp_path), Layout(), tmp_path / "out", HOSTILE)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in text
    page = read(tmp_path / "out" / "report.html")
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 4
    assert html.escape(HOSTILE).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text
    plain = (tmp_path / "out" / "report.md").read_text()
    assert "<script" not in re.sub(r"`[^`\n]*`", "", plain)


def test_what_has_to_be_known_of_a_table_is_in_its_report(tmp_path: Path) -> None:
    write(tmp_path, record("snip", 0.5, 0, mask={"sparsity": 0.99997}))
    write_report(collect(tmp_path), Layout(), tmp_path / "out", "A sweep")
    page = read(tmp_path / "out" / "report.html").text
    plain = (tmp_path / "out" / "report.md").read_text()
    for text in (page, plain):
        assert "nothing is bold: no two rows have two seeds in common" in text
        assert "not the sparsity asked for: snip, sparsity 0.5: 0.999970 reached" in text
    assert "| 0.99997 |" in plain
    assert "0.99997" in page


def test_what_an_earlier_report_left_does_not_outlive_its_table(tmp_path: Path) -> None:
    write(tmp_path, record(seed=0), record(seed=1))
    assert write_report(collect(tmp_path), Layout(), tmp_path, "sweep") is not None
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"")
    made = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert {"table.md", "table.tex", "table.csv", "accuracy_against_sparsity.pdf"} <= made
    write(tmp_path / "more", record(seed=2, config={"training": {"epochs": 7}}))
    assert write_report(collect(tmp_path), Layout(), tmp_path, "sweep") is None
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"mine.png", "report.html", "report.md", "runs.csv"}


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    write(tmp_path, record(seed=0))
    (tmp_path / "file").write_bytes(b"")
    place = re.escape(f"{tmp_path}/file/below/")
    with pytest.raises(ConfigError, match=rf"^out: cannot write {place}.*: Not a directory$"):
        write_report(collect(tmp_path), Layout(), tmp_path / "file" / "below", "sweep")


def test_runs_that_make_no_table_have_a_report_that_says_why(tmp_path: Path) -> None:
    write(tmp_path, record(seed=0), record(seed=1, config={"training": {"epochs": 7}}))
    assert write_report(collect(tmp_path), Layout(), tmp_path, "sweep") is None
    page = read(tmp_path / "report.html")
    assert "No table: training.epochs: runs of one table differ in it" in page.text
    assert "run1" in page.text
    assert not (tmp_path / "table.md").exists()
    assert "run1" in (tmp_path / "runs.csv").read_text()
    with pytest.raises(ConfigError, match="no run has this group"):
        write_report(collect(tmp_path), Layout(rows=("typo",)), tmp_path, "sweep")


def test_a_sweep_on_real_images_from_runs_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scorer in ("snip", "magnitude"):
        for seed in (0, 1):
            chosen = (f"scorer={scorer}", f"seed={seed}", "training.epochs=0")
            tiny_run(tmp_path / f"{scorer}{seed}", *chosen)
    monkeypatch.syspath_prepend(str(CHECKOUT / "scripts"))
    import report

    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path)])
    report.main()
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    drawn = {"accuracy_against_sparsity", "layer_density", "score_histograms",
             "accuracy_against_scoring_time"}  # fmt: skip
    assert files == {f"{name}.{kind}" for name in drawn for kind in ("png", "pdf")} | {
        "table.md", "table.tex", "table.csv", "runs.csv", "report.html", "report.md",
    }  # fmt: skip
    assert len(read(tmp_path / "report.html").links) == 4
    table = (tmp_path / "table.md").read_text()
    assert "| `gradient_scorer` |" in table
    assert "(n=2" in table


@pytest.mark.parametrize("script", ["table.py", "figures.py", "report.py"])
def test_without_the_extra_each_script_says_what_is_missing(script: str, tmp_path: Path) -> None:
    write(tmp_path, record())
    blocked = (
        "import sys, runpy, importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda n, *a: None if n in ('duckdb', 'matplotlib') else find(n, *a); "
        f"sys.argv = ['{script}', '.']; runpy.run_path({str(CHECKOUT / 'scripts' / script)!r}, "
        "run_name='__main__')"
    )
    done = python("-c", blocked, cwd=tmp_path)
    assert done.returncode == 1
    assert "duckdb: not installed" in done.stderr
    assert "Traceback" not in done.stderr
