"""The LaTeX table: its structure, and that LaTeX sets what pai writes."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sweep_records import HOSTILE, grid, record, small_sweep

from pai.reports.latex import latex, tex_text

DOCUMENT = r"""
\documentclass{article}
\usepackage{booktabs}
\begin{document}
TABLE
\end{document}
"""
needs_latex = pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("pdftotext")),
    reason="pdflatex and pdftotext are not installed",
)


def made(folder: Path, *records: dict[str, Any], **layout: Any) -> str:
    return latex(grid(folder, *records, **layout), "100 % of_it.", "a_b%")


def sweep() -> list[dict[str, Any]]:
    """The small sweep, and a name to escape."""
    return [*small_sweep(), *(record(HOSTILE, 0.9, s, 0.1) for s in (0, 1))]


def between(text: str, start: str, end: str) -> list[str]:
    lines = text.splitlines()
    first = lines.index(start)
    return lines[first + 1 : lines.index(end, first + 1)]


def test_the_cells_say_mean_spread_best_collapse_and_what_is_missing(tmp_path: Path) -> None:
    text = made(tmp_path, *sweep())
    assert r"\begin{tabular}{lrr}" in text
    assert between(text, r"\toprule", r"\midrule") == [
        r" & \multicolumn{2}{c}{sparsity} \\",
        r"scorer & 0.9 & 0.98 \\",
    ]
    (reference,) = between(text, r"\midrule", r"\midrule")
    assert reference.startswith("none (dense) & 99.0 ")
    rows = between(text[text.rindex(r"\midrule") :], r"\midrule", r"\bottomrule")
    assert rows[:3] == [
        r"hts & \textbf{92.0} {\scriptsize $\pm$ 2.8} & 50.0 {\scriptsize ($n=1$)}"
        r"\rlap{\scriptsize$^{\dagger 1}$} \\",
        r"snip & \textbf{91.5} {\scriptsize $\pm$ 0.7} & missing \\",
        r"random & 50.0 {\scriptsize $\pm$ 0.0} & 15.0 {\scriptsize $\pm$ 7.1}"
        r"\rlap{\scriptsize$^{\dagger 3}$} \\",
    ]
    assert rows[3].startswith(
        r"a\_b\&c\%d\$e\#f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
        r"\textless{}l\textgreater{}\textbar{}\textasciigrave{}m\textasciigrave{} & 10.0"
    )
    assert r"\label{tab:a-b-}" in text


def test_the_caption_explains_what_is_in_the_table(tmp_path: Path) -> None:
    text = made(tmp_path / "all", *sweep())
    for words in (
        r"100 \% of\_it. Mean",
        "over 2 seeds unless noted.",
        "Bold:",
        "Above",
        "dagger k",
    ):
        assert words in text
    plain = made(tmp_path / "one", record("snip", 0.9, 0, 0.9), record("hts", 0.9, 0, 0.1))
    assert r"\caption{100 \% of\_it. One seed.}" in plain
    assert plain.count(r"\midrule") == 1
    assert "dagger" not in plain


def test_what_has_to_be_known_beside_the_table_is_in_comments(tmp_path: Path) -> None:
    failed = record("snip", 0.98, 0, status="failed", error="boom\n\\end{table}")
    text = made(tmp_path, *sweep(), failed)
    comments, table = text.split(r"\begin{table}")
    assert all(line.startswith("% ") for line in comments.splitlines())
    assert r"failed: boom \end{table}" in comments
    assert "missing: snip, sparsity 0.98: seed 0, 1" in comments
    assert "boom" not in table


def test_several_keys_of_the_columns_stand_in_one_cell(tmp_path: Path) -> None:
    runs = [record("snip", 0.9, 0, 0.9, warmup=w) for w in ("bn_stats", "none")]
    text = made(tmp_path, *runs, columns=("warmup", "sparsity"))
    assert between(text, r"\toprule", r"\midrule") == [
        r" & \multicolumn{2}{c}{warmup, sparsity} \\",
        r"scorer & bn\_stats, 0.9 & none, 0.9 \\",
    ]


def test_tex_text_has_one_line() -> None:
    assert tex_text("a\n\\b") == r"a \textbackslash{}b"


@needs_latex
def test_latex_sets_the_table_and_names_as_they_are(tmp_path: Path) -> None:
    text = made(tmp_path, *sweep(), record("snip", 0.98, 0, status="failed", error="boom"))
    (tmp_path / "table.tex").write_text(DOCUMENT.replace("TABLE", text))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout
    # Computer Modern draws underscores as rules, which are no text
    printed = subprocess.run(
        ["pdftotext", "-layout", "table.pdf", "-"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    for words in ("a b&c%d$e#f{g}h", "k<l>|", "100 % of it.", "92.0 ± 2.8", "missing"):
        assert words in printed, printed
