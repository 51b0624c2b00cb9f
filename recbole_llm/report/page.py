"""``report.html``: a table of results as one self-contained page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.report.examples import ExampleUser
from recbole_llm.report.layout import (
    DIFFERS,
    Column,
    columns_of,
    comparison_cells,
    comparison_note,
    lines_of,
    metric_label,
    numbered_notes,
    remarks,
    spread,
    test_metrics,
)

if TYPE_CHECKING:
    from jinja2 import Template

    from recbole_llm.report.table import ResultTable

FILE, TEMPLATE = "report.html", "report.html.j2"
BLACK = re.compile(r"#000000\b")


@dataclass(frozen=True)
class Changed:
    """A setting that is not its default.

    Attributes:
        key: name of the setting.
        value: its value in the run, as text.
        default: its default, as text.
        models: models that it holds for, in words.
    """

    key: str
    value: str
    default: str
    models: str


@dataclass(frozen=True)
class PageFacts:
    """What a page says beside its table.

    Attributes:
        protocol: how rows were evaluated: a heading to a sentence.
        settings: settings that differ from their defaults.
        examples: a few rows, with what each model said of them.
        pictures: caption to the text of an SVG file.
    """

    protocol: Mapping[str, str] = field(default_factory=dict)
    settings: Sequence[Changed] = ()
    examples: Sequence[ExampleUser] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)


def to_page(table: ResultTable, facts: PageFacts | None = None) -> str:
    """The page as text.

    Args:
        table: the results.
        facts: what else is shown.

    Returns:
        HTML, without a reference to anything outside of it; every text of the data is escaped.

    Example:
        >>> from recbole_llm.report import ResultTable, RunResult
        >>> page = to_page(ResultTable((RunResult("Pop", "<b>", test={"ndcg@10": 0.0163}),)))
        >>> "0.0163" in page, "<b>" in page
        (True, False)
    """
    facts = facts or PageFacts()
    return _template().render(
        table=table,
        facts=facts,
        headline=headline(table),
        results=_cells(columns_of(table)),
        compared=comparison_cells(table) if table.comparisons else None,
        note=comparison_note(table),
        notes=numbered_notes(table),
        remarks=remarks(table),
        runs=_runs(table),
        pictures={caption: _inline(svg) for caption, svg in facts.pictures.items()},
        differs=DIFFERS,
    )


def write_page(table: ResultTable, folder: str | Path, facts: PageFacts | None = None) -> Path:
    """Write :func:`to_page` to ``report.html`` in a folder; returns the file."""
    path = Path(folder) / FILE
    path.write_text(to_page(table, facts), encoding="utf-8")
    return path


def headline(table: ResultTable) -> str:
    """The table in one sentence: which model is best by the metric of the comparisons, and whether that is sure."""
    columns = [column for column in columns_of(table) if column.metric]
    if not columns or not columns[0].best:
        return ""
    column, lines = columns[0], lines_of(table.results)
    best = [lines[index].model for index in sorted(column.best)]
    cell = spread([result.test.get(column.metric) for result in lines[min(column.best)].results])
    said = f"By {metric_label(column.metric)}, {' and '.join(best)} {'is' if len(best) == 1 else 'are'} best ({cell})"
    own = [one for one in table.comparisons if one.model in best and one.metric == column.metric]
    if len(best) != 1 or not own:
        return f"{said}."
    sure = "differs" if own[0].is_significant else "does not differ significantly"
    return f"{said} and {sure} from {own[0].baseline} (p = {own[0].p_holm:.3f})."


def _cells(columns: Sequence[Column]) -> dict[str, Any]:
    """Headings, and a row of cells for each line; a cell is its text, whether it is best, and whether it differs."""
    rows = [
        [
            {
                "text": column.cells[index].removesuffix(DIFFERS) if column.metric else column.cells[index],
                "best": index in column.best,
                "differs": bool(column.metric) and column.cells[index].endswith(DIFFERS),
            }
            for column in columns
        ]
        for index in range(len(columns[0].cells))
    ]
    return {"head": [column.head for column in columns], "rows": rows}


def _runs(table: ResultTable) -> dict[str, Any]:
    """Every run with its unrounded facts and rounded metrics; nothing where the table has a line for each anyway."""
    if len(lines_of(table.results)) == len(table.results):
        return {}
    names = test_metrics(table)
    rows = [
        [result.model, result.seed, result.folder, *(spread([result.test.get(name)]) for name in names)]
        for result in table.results
    ]
    return {"head": ["Model", "Seed", "Run folder", *map(metric_label, names)], "rows": rows}


def _inline(svg: str) -> str:
    """An SVG file as part of a page: without its prolog, and in the page's own text colour."""
    return BLACK.sub("currentColor", svg[svg.index("<svg") :])


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("recbole_llm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)
