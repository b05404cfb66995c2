"""Tables as text: against hand-computed means, and with names that try to break them."""

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sweep_records import HOSTILE, grid, merged, record, small_sweep, write

from pai.reports.collect import collect
from pai.reports.grid import Layout, build_grid
from pai.reports.table import cell_frame, markdown, markdown_code, remarks, run_frame
from pai.reports.write import write_tables

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_markdown_has_mean_spread_seeds_ties_collapse_and_what_is_missing(tmp_path: Path) -> None:
    made = grid(tmp_path, *small_sweep())
    assert markdown(made).splitlines() == [
        "| scorer | sparsity 0.9 | sparsity 0.98 |",
        "|---|---|---|",
        "| `none` | 99.0 ± 0.0 (n=2) | 99.0 ± 0.0 (n=2) |",
        "| `hts` | **92.0 ± 2.8** (n=2) | 50.0 (n=1, 1 collapsed layer) |",
        "| `snip` | **91.5 ± 0.7** (n=2) | missing |",
        "| `random` | 50.0 ± 0.0 (n=2) | 15.0 ± 7.1 (n=2, 3 collapsed layers) |",
    ]
    assert remarks(made) == [
        "sparsity 0.98: nothing is bold, as no two rows have two seeds in common",
        "missing: hts, sparsity 0.98: seed 0",
        "missing: snip, sparsity 0.98: seed 0, 1",
    ]


def test_nothing_is_bold_if_there_is_one_seed(tmp_path: Path) -> None:
    made = grid(tmp_path, record("snip", 0.9, 0, 0.9), record("hts", 0.9, 0, 0.1))
    assert "**" not in markdown(made)
    assert remarks(made) == ["nothing is bold: no two rows have two seeds in common"]


def test_rows_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    made = grid(
        tmp_path, record("lucky", 0.9, 0, 0.95),
        *(record(name, 0.9, s, 0.5) for name in ("hts", "snip") for s in (0, 1)),
    )  # fmt: skip
    assert remarks(made)[0] == (
        "sparsity 0.9: not compared, as they share fewer than two seeds with the best row: lucky"
    )


def test_a_mask_of_another_sparsity_than_asked_for_is_told(tmp_path: Path) -> None:
    far = {"sparsity": 0.434, "effective_sparsity": 0.45}
    rounded = {"sparsity": 0.501, "effective_sparsity": 0.5}
    effective: dict[str, Any] = {"config": {"sparsity_is": "effective"}}
    for name, more, found in (("direct", {}, 0.434), ("effective", effective, 0.45)):
        made = grid(
            tmp_path / name, record("snip", 0.5, 0, mask=far, **more),
            record("hts", 0.5, 0, mask=rounded, **more),
            record("none", 0.0, 0, mask={"effective_sparsity": 0.1}, **more),
        )  # fmt: skip
        column = made.column_label((0.5,))
        told = [line for line in remarks(made) if line.startswith("not the sparsity")]
        assert told == [f"not the sparsity asked for: snip, {column}: {found:.6f} reached"]
        cells = cell_frame(made).set_index("row")["sparsity_reached"]
        assert cells["snip"] == found


def test_a_hostile_name_stays_in_its_cell(tmp_path: Path) -> None:
    made = grid(tmp_path, record(HOSTILE + "\n|", 0.9, 0, 0.5))
    (line,) = markdown(made).splitlines()[2:]
    assert line.replace("\\|", "").count("|") == 3
    assert markdown_code("a`b`|") == "`a'b'\\|`"


def test_csv_is_exact_and_names_what_is_missing(tmp_path: Path) -> None:
    third = 1 / 3
    made = grid(
        tmp_path, record("snip", 0.9, 0, third), record("snip", 0.9, 1, 0.1),
        record("hts", 0.9, 1, 0.2),
    )  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(cell_frame(made).to_csv(index=False))))
    cells = {line["row"]: line for line in lines}
    assert float(cells["snip"]["mean"]) == (third + 0.1) / 2
    assert [float(v) for v in cells["snip"]["values"].split()] == [third, 0.1]
    assert (cells["snip"]["seeds"], cells["snip"]["n"], cells["snip"]["sparsity"]) == (
        "0 1", "2", "0.9",
    )  # fmt: skip
    assert (cells["hts"]["missing_seeds"], cells["hts"]["std"]) == ("0", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"), ("+seeds.data=1", "'+seeds.data=1"), ("-1+cmd|x", "'-1+cmd|x"),
        ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'\t=1"), (" =1", "' =1"), ("a\r=1", "a =1"),
    ],
)  # fmt: skip
def test_no_text_in_a_csv_file_is_a_formula(text: str, shown: str, tmp_path: Path) -> None:
    runs = [record(text, 0.9, s, 0.5, name=text) for s in (0, 1)]
    losses = {text: -1.5, "metrics": {"test_loss": -0.25, "deep": "-0.5"}}
    folder = write(tmp_path / "sweep", *(merged(run, losses) for run in runs))
    collection = collect(folder)
    write_tables(collection, build_grid(collection, Layout(metric="test_loss")), tmp_path)
    for name, column in (("table.csv", "row"), ("runs.csv", "name")):
        content = (tmp_path / name).read_bytes().decode()
        assert "\r" not in content
        lines = list(csv.DictReader(io.StringIO(content, newline="")))
        assert lines[0][column] == shown
        cells = [cell for line in lines for pair in line.items() for cell in pair]
        odd = {cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))}
        assert odd and odd <= {"-1.5", "-0.25", "-0.5", "-0.25 -0.25"}
        assert shown in lines[0] or name == "table.csv"


def test_runs_that_were_not_chosen_say_so(tmp_path: Path) -> None:
    collection = collect(write(tmp_path, record("snip", 0.9), record("snip", 0.98)))
    made = build_grid(collection, Layout(where={"sparsity": 0.9}))
    lines = run_frame(collection, made).set_index("config.sparsity")["left_out"]
    assert lines[0.98] == "not selected by --where"
    assert lines.isna()[0.9]


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_prints_the_table_of_a_folder_and_writes_it(tmp_path: Path) -> None:
    write(
        tmp_path / "sweep", *small_sweep(), record("snip", 0.98, 0, status="failed", error="boom")
    )
    done = script("table.py", tmp_path / "sweep", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "| `snip` | **91.5 ± 0.7** (n=2) | missing |" in done.stdout
    assert "run11: failed: boom" in done.stdout
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"table.md", "table.tex", "table.csv", "runs.csv"}
    assert (tmp_path / "out" / "table.md").read_text().splitlines()[3] in done.stdout
    lines = list(csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines()))
    assert len(lines) == 12
    (failed,) = [line for line in lines if line["left_out"]]
    assert (failed["left_out"], failed["status"]) == ("failed: boom", "failed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "table error: no records found"),
        (["--where", "snip"], "table error: where: 'snip' is not KEY=VALUE"),
        (["--rows", ""], "table error: rows, columns: each needs at least one key"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import table

    monkeypatch.setattr("sys.argv", ["table.py", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as raised:
        table.main()
    assert raised.value.code == message
