"""A table of results as text: for the terminal, Markdown, HTML and LaTeX."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from tabulate import DataRow, TableFormat, tabulate

from recbole_llm.report.layout import (
    Column,
    columns_of,
    comparison_cells,
    comparison_note,
    metric_label,
    numbered_notes,
    remarks,
    repeated,
    split,
)

if TYPE_CHECKING:
    from recbole_llm.report.table import ResultTable

N_SPREAD, N_PLAIN = 3, 6  # metrics side by side on a page of a paper, with and without deviations
N_FIRST = 4  # metrics of the terminal's block that go before facts that explain less
# GitHub's tables without padding: a long name in one row makes no other row longer.
_MARKDOWN = TableFormat(
    lineabove=None,
    linebelowheader=lambda widths, _: "| " + " | ".join(["---"] + ["---:"] * (len(widths) - 1)) + " |",
    linebetweenrows=None,
    linebelow=None,
    headerrow=DataRow("| ", " | ", " |"),
    datarow=DataRow("| ", " | ", " |"),
    padding=0,
    with_header_hide=None,
)
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
_MINUS = re.compile(r"(?<![\w-])-(?=\d)")  # of a number; a hyphen elsewhere
_LATEX |= {
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "−": "$-$",
    "…": r"\ldots{}",
    "–": "--",
    "*": r"$^{*}$",
    "<": "$<$",
    ">": "$>$",
}


def to_text(table: ResultTable, width: int, bold: bool) -> str:
    """One block of at most ``width`` columns, the metric of the comparisons first; what is left out is named."""
    columns, same = columns_of(table), repeated(table)
    shown = [column for column in columns if split(column.metric)[0] not in same]
    kept = _fitting(shown, width)
    lines = [*_block(kept, _terminal_bold if bold else str), ""]
    for family, other in same.items():
        lines.append(f"{metric_label(family)} equals {metric_label(other)} at every cut-off and is left out.")
    if len(kept) < len(shown):
        names = ", ".join(column.head for column in shown if column not in kept)
        lines += textwrap.wrap(f"Not shown here: {names}.", width)
    if table.comparisons:
        head, rows = comparison_cells(table)
        lines += ["", *_plain([head, *rows]), "", *textwrap.wrap(comparison_note(table), width)]
    notes = [*(f"[{number}] {note}" for number, note in numbered_notes(table)), *remarks(table)]
    lines += ["", *notes] if notes and lines[-1] else notes
    return "\n".join(lines).rstrip() + "\n"


def _fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit, the more telling ones first, in their usual order."""
    metrics = [column for column in columns if column.metric]
    facts = {column.head: column for column in columns if not column.metric}
    first = [facts.pop(head) for head in ("Model", "Data", "Seed", "Seeds") if head in facts] + metrics[:1]
    then = [facts.pop(head) for head in ("Train rows", "Time") if head in facts] + metrics[1:N_FIRST]
    last = {head: facts.pop(head) for head in ("Epochs", "Best", "Rows") if head in facts}
    kept, used = list(first), sum(_width(column) for column in first) + 2 * (len(first) - 1)
    for column in [*then, *facts.values(), *last.values(), *metrics[N_FIRST:]]:
        if used + 2 + _width(column) <= width:
            kept.append(column)
            used += 2 + _width(column)
    return [column for column in columns if any(column is one for one in kept)]


def _width(column: Column) -> int:
    return max(len(cell) for cell in (column.head, *column.cells))


def _block(columns: Sequence[Column], emphasise: Callable[[str], str]) -> list[str]:
    return _plain([[column.head for column in columns], *_rows(columns, emphasise)])


def _plain(rows: Sequence[Sequence[str]]) -> list[str]:
    align = ("left", *["right"] * (len(rows[0]) - 1))
    shown = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=align)
    return [line.rstrip() for line in str(shown).splitlines()]


def _rows(columns: Sequence[Column], emphasise: Callable[[str], str]) -> list[list[str]]:
    """The cells of each line, the best ones emphasised."""
    n = len(columns[0].cells)
    return [
        [emphasise(column.cells[index]) if index in column.best else column.cells[index] for column in columns]
        for index in range(n)
    ]


def _terminal_bold(cell: str) -> str:
    return f"\x1b[1m{cell}\x1b[0m"


def to_markdown(table: ResultTable) -> str:
    """Markdown for GitHub: the table, comparisons and footnotes, then command, data and versions."""
    columns = columns_of(table)
    lines = [f"# {table.title}", ""]
    lines += [*_markdown([column.head for column in columns], _rows(columns, lambda cell: f"**{cell}**")), ""]
    if table.comparisons:
        lines += [*_markdown(*comparison_cells(table)), "", _escaped(comparison_note(table)), ""]
    lines += [f"- [{number}] {note}" for number, note in numbered_notes(table)]
    lines += [*(f"- {line}" for line in remarks(table)), ""]
    if table.command:
        lines += [f"Command: `{table.command}`", ""]
    lines += [f"- data {name}: sha256 `{value}`" for name, value in table.data_hash.items()]
    lines += [f"- {line}" for line in table.reading]
    lines += [f"- {name}: {value}" for name, value in table.environment.items()]
    return "\n".join(lines).rstrip() + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *rows]]
    shown = tabulate(cells[1:], cells[0], tablefmt=_MARKDOWN, disable_numparse=True, stralign=None)
    return str(shown).splitlines()


def _escaped(note: str) -> str:
    return note.replace("*", "\\*")


def to_html(table: ResultTable) -> str:
    """What a notebook shows: the table, its comparisons, footnotes and remarks."""
    columns = columns_of(table)
    shown = _html([column.head for column in columns], _rows(columns, str))
    if table.comparisons:
        shown += _html(*comparison_cells(table)) + f"<div>{escape(comparison_note(table))}</div>"
    below = [*(f"[{number}] {note}" for number, note in numbered_notes(table)), *remarks(table)]
    return shown + "".join(f"<div>{escape(note)}</div>" for note in below)


def _html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return str(tabulate(rows, head, tablefmt="html", disable_numparse=True, stralign="right"))


def to_latex(table: ResultTable) -> str:
    """Two tables for a paper (package booktabs): metrics, best ones bold, and comparisons with the baseline.

    Metrics that exceed the width of a page continue in a block below.
    """
    same = repeated(table)
    columns = [column for column in columns_of(table) if column.metric or column.head in ("Model", "Data", "Seeds")]
    columns = [column for column in columns if split(column.metric)[0] not in same]
    plain = [Column(column.head, tuple(map(_latex, column.cells)), column.metric, column.best) for column in columns]
    caption = [f"{metric_label(family)} equals {metric_label(other)}." for family, other in same.items()]
    caption = [f"{table.title}.", *caption, comparison_note(table)]
    facts, metrics = ([column for column in plain if bool(column.metric) is is_metric] for is_metric in (False, True))
    width = N_PLAIN if not any("±" in cell for column in columns for cell in column.cells) else N_SPREAD
    blocks = [facts + metrics[start : start + width] for start in range(0, max(len(metrics), 1), width)]
    parts = [([column.head for column in own], _rows(own, lambda cell: f"\\textbf{{{cell}}}")) for own in blocks]
    lines = [f"% {table.command}"] if table.command else []
    notes = [*(f"[{number}] {note}" for number, note in numbered_notes(table)), *remarks(table)]
    lines += _booktabs(parts, " ".join(filter(None, caption)), notes)
    if table.comparisons:
        head, compared = comparison_cells(table)
        head = [name.replace("over seeds and users", "seeds, users").replace("over users", "users") for name in head]
        rows = [list(map(_latex, row)) for row in compared]
        lines += ["", *_booktabs([(head, rows)], "Paired comparisons.", size="scriptsize")]
    return "\n".join(lines) + "\n"


def _booktabs(
    parts: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]],
    caption: str,
    notes: Sequence[str] = (),
    size: str = "footnotesize",
) -> list[str]:
    """One float of several blocks below each other, each with its head and rows; what marks mean stands below them."""
    lines = [
        "\\begin{table}",
        f"  \\centering\\{size}\\setlength{{\\tabcolsep}}{{3pt}}",
        f"  \\caption{{{_latex(caption)}}}",
    ]
    for number, (head, rows) in enumerate(parts):
        lines += ["", "  \\medskip"] if number else []
        lines += [f"  \\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "    \\toprule"]
        lines += [f"    {' & '.join(map(_latex, head))} \\\\", "    \\midrule"]
        lines += [f"    {' & '.join(row)} \\\\" for row in rows]
        lines += ["    \\bottomrule", "  \\end{tabular}"]
    if notes:
        lines += ["", "  \\smallskip\\raggedright\\scriptsize", *(f"  {_latex(note)}\\par" for note in notes)]
    return [*lines, "\\end{table}"]


def _latex(text: str) -> str:
    text = _MINUS.sub("−", " ".join(text.split()))
    return "".join(_LATEX.get(letter, letter) for letter in text)
