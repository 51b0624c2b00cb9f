"""The table of a command: all models side by side, for the terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from tabulate import DataRow, TableFormat, tabulate

from recbole_llm.report.compared import Compared

NOT_RUN = "not run"
TINY_LLM_NOTE = "tiny LLM: for trying out, not for quality claims"

# In the order of the columns.
_METRIC_LABELS = {
    "recall": "Recall",
    "ndcg": "NDCG",
    "mrr": "MRR",
    "hit": "Hit",
    "category_hit": "CategoryHit",
    "auc": "AUC",
    "logloss": "LogLoss",
    "hit_ratio": "HitRatio@1",
    "valid_ratio": "ValidRatio",
    "hit_ratio_valid": "HitRatio@1 of valid",
    "hit_ratio_reference": "HitRatio@1 (reference)",
    "valid_ratio_reference": "ValidRatio (reference)",
    "hit_ratio_valid_reference": "HitRatio@1 of valid (reference)",
}
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
_UNKNOWN = "-"  # a fact of the run that does not apply
DOUBT = "!"  # beside a run whose training or answers give reason to doubt it
_NOT_FACTS = ("test", "valid", "summary", "notes", "warnings")
_SUMMARY = {"valid_loss": "Valid loss", "distinct_answers": "Distinct answers", "top_answer": "Top answer"}
_FORMAT = 1


@dataclass(frozen=True)
class RunResult:
    """One model on one data set with one seed.

    Attributes:
        model: name in the table.
        dataset: name of the data set.
        point: effective point of the run, such as ``BIGRec adapter=lora coreset=none curriculum=none``.
        seed: of the run.
        train_rows: rows trained on.
        epochs: epochs trained.
        best_epoch: epoch evaluated, counted from 1.
        wall_seconds: wall time of the run.
        n_rows: rows evaluated.
        folder: the run's own folder.
        test: unrounded metrics on the test rows under RecBole's names (``ndcg@10``), and ``category_hit@10``, or those
            of answers among candidates (``hit_ratio``); None or missing: not run.
        valid: the same on the validation rows.
        notes: what a reader must know beside the numbers, such as ``TINY_LLM_NOTE``.
        summary: ``distinct_answers`` (different answers over rows) and ``top_answer`` (share of rows that got the most
            frequent one) of the test rows, ``valid_loss`` (per token of the validation rows' answers); those it has.
        warnings: what there is to doubt of the run, a line each; it is marked in the table.
        revision: the commit that gave the result, or the version where the package is no checkout.

    Example:
        >>> RunResult("Pop", "ml-100k", test={"ndcg@10": 0.0163}).epochs is None
        True
    """

    model: str
    dataset: str
    point: str = ""
    seed: int | None = None
    train_rows: int | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    wall_seconds: float | None = None
    n_rows: int | None = None
    folder: str = ""
    test: dict[str, float | None] = field(default_factory=dict)
    valid: dict[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    summary: dict[str, float | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    revision: str = ""


@dataclass(frozen=True)
class ResultTable:
    """Results with what is needed to repeat them.

    Attributes:
        results: one entry per run, in the order of the rows.
        environment: see ``recbole_llm.report.versions``.
        data_hash: data set name -> see ``recbole_llm.report.data_hash``.
        command: the command line that gave the results.
        title: heading of the Markdown.
        reading: what became of the lines of the data set's files, in words.
        metric: the metric by which models are compared.
        comparisons: of the models with a baseline.

    Example:
        >>> table = ResultTable((RunResult("Pop", "ml-100k", test={"ndcg@10": 0.0163}),))
        >>> print(table.text())
        Model  Train rows  Epochs  Best  Time  Rows  NDCG@10
        Pop             -       -     -     -     -   0.0163
        >>> ResultTable.from_json(table.json()) == table
        True
    """

    results: tuple[RunResult, ...]
    environment: dict[str, str] = field(default_factory=dict)
    data_hash: dict[str, str] = field(default_factory=dict)
    command: str = ""
    title: str = "Results"
    reading: tuple[str, ...] = ()
    metric: str = ""
    comparisons: tuple[Compared, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", tuple(self.results))
        object.__setattr__(self, "reading", tuple(self.reading))
        object.__setattr__(self, "comparisons", tuple(self.comparisons))

    @property
    def metrics(self) -> list[str]:
        """Metric columns: Recall, NDCG, MRR, Hit, CategoryHit, then others as they come, each by growing cut-off."""
        return _ordered(name for result in self.results for name in (*result.test, *result.valid))

    def text(self, width: int = 120) -> str:
        """For the terminal: fixed-width columns; those beyond ``width`` characters continue below, beside the model."""
        head, rows = self._cells()
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        lines = []
        for columns in _fold(widths, width):
            cells = [[row[column] for column in columns] for row in [head, *rows]]
            shown = tabulate(
                cells, tablefmt="plain", disable_numparse=True, colalign=("left", *["right"] * (len(columns) - 1))
            )
            lines += [*(line.rstrip() for line in shown.splitlines()), ""]
        lines += [*self._footnotes(lambda number: f"[{number}] "), *self._doubts()]
        return "\n".join(lines).rstrip() + "\n"

    def markdown(self) -> str:
        """For GitHub: the table, footnotes, then command, data and versions."""
        head, rows = self._cells()
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *rows]]
        table = tabulate(cells[1:], cells[0], tablefmt=_MARKDOWN, disable_numparse=True, stralign=None)
        lines = [f"# {self.title}", "", *table.splitlines(), ""]
        lines += [*self._footnotes(lambda number: f"- [{number}] "), *(f"- {line}" for line in self._doubts()), ""]
        if self.command:
            lines += [f"Command: `{self.command}`", ""]
        lines += [f"- data {name}: sha256 `{value}`" for name, value in self.data_hash.items()]
        lines += [f"- {line}" for line in self.reading]
        lines += [f"- {name}: {value}" for name, value in self.environment.items()]
        return "\n".join(lines).rstrip() + "\n"

    def csv(self) -> str:
        """One line per run, unrounded; validation metrics carry the prefix ``valid_``; empty cells were not run."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self._columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._line(result) for result in self.results)
        return stream.getvalue()

    def _repr_html_(self) -> str:
        """What a notebook shows: the table of :meth:`text` with its footnotes."""
        head, rows = self._cells()
        shown = str(tabulate(rows, head, tablefmt="html", disable_numparse=True, stralign="right"))
        below = [*self._footnotes(lambda number: f"[{number}] "), *self._doubts()]
        notes = "".join(f"<div>{escape(note)}</div>" for note in below)
        return shown + notes

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame`` with a line per run, unrounded: facts, test metrics, and ``valid_<metric>``."""
        import pandas as pd  # only here: the rest of a table needs no pandas

        return pd.DataFrame([self._line(result) for result in self.results], columns=self._columns())

    def _columns(self) -> list[str]:
        facts = [name for name in RunResult.__dataclass_fields__ if name not in _NOT_FACTS]
        metrics = [*self.metrics, *(f"valid_{name}" for name in self.metrics)]
        return [*facts, *metrics, *_SUMMARY, "notes", "warnings"]

    def _line(self, result: RunResult) -> dict[str, Any]:
        line = {name: value for name, value in vars(result).items() if name not in _NOT_FACTS}
        line |= {name: result.test.get(name) for name in self.metrics}
        line |= {f"valid_{name}": result.valid.get(name) for name in self.metrics}
        line |= {name: result.summary.get(name) for name in _SUMMARY}
        return {**line, "notes": "; ".join(result.notes), "warnings": "; ".join(result.warnings)}

    def json(self) -> str:
        """Everything, unrounded; ``from_json`` gives an equal table back."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ResultTable:
        """Reads what ``json`` wrote.

        Raises:
            ValueError: the text is no such table, or of a later format.
        """
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
            raise ValueError(f"not a table of results in format {_FORMAT}")
        texts = ("notes", "warnings")
        results = [
            RunResult(**{**entry, **{name: tuple(entry.get(name, ())) for name in texts}})
            for entry in content.pop("results")
        ]
        content["comparisons"] = [Compared.from_dict(entry) for entry in content.get("comparisons", ())]
        return cls(results=tuple(results), **content)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ResultTable:
        """Reads a ``results.json``."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def write(self, folder: str | os.PathLike[str], stem: str = "results") -> list[Path]:
        """Writes ``<stem>.md``, ``.csv`` and ``.json`` into a folder, made if needed, and returns their paths."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        contents = {".md": self.markdown(), ".csv": self.csv(), ".json": self.json()}
        paths = [Path(folder) / f"{stem}{suffix}" for suffix in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_text(content, encoding="utf-8")
        return paths

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the printed table: model, facts that tell runs apart, then the test metrics."""
        facts = [(head, show) for head, show, always in _FACTS if always or self._differ(show)]
        facts += [
            (head, partial(_summary_cell, name))
            for name, head in _SUMMARY.items()
            if any(result.summary.get(name) is not None for result in self.results)
        ]
        metrics = _ordered(name for result in self.results for name in result.test)
        head = ["Model", *(head for head, _ in facts), *map(_metric_label, metrics)]
        rows = []
        for result in self.results:
            marks = "".join(f"[{number}]" for number, note in self._numbered() if note in self._notes_of(result))
            marks = (DOUBT if result.warnings else "") + marks
            cells = [f"{result.model} {marks}".rstrip(), *(show(result) for _, show in facts)]
            rows.append(cells + [_metric_cell(result.test.get(name)) for name in metrics])
        return head, rows

    def _differ(self, show: Callable[[RunResult], str]) -> bool:
        return len({show(result) for result in self.results} - {_UNKNOWN}) > 1

    def _footnotes(self, lead: Callable[[int], str]) -> list[str]:
        return [lead(number) + note for number, note in self._numbered()]

    def _doubts(self) -> list[str]:
        """The warnings of the marked runs."""
        several = self._differ(lambda result: _count(result.seed))
        return [
            f"{DOUBT} {result.model}{f', seed {result.seed}' if several else ''}: {warning}"
            for result in self.results
            for warning in result.warnings
        ]

    def _numbered(self) -> list[tuple[int, str]]:
        notes = dict.fromkeys(note for result in self.results for note in self._notes_of(result))
        return list(enumerate(notes, start=1))

    @staticmethod
    def _notes_of(result: RunResult) -> tuple[str, ...]:
        """The effective point is a footnote as well, where it says more than the model's name."""
        return ((result.point,) if result.point not in ("", result.model) else ()) + result.notes


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return _UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m{rest:02d}s" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def _summary_cell(name: str, result: RunResult) -> str:
    value = result.summary.get(name)
    return _UNKNOWN if value is None else f"{value:.3f}"


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else str(number)


_FACTS: Sequence[tuple[str, Callable[[RunResult], str], bool]] = (  # head, cell, shown even if all rows agree
    ("Data", lambda result: result.dataset, False),
    ("Seed", lambda result: _count(result.seed), False),
    ("Train rows", lambda result: _count(result.train_rows), True),
    ("Epochs", lambda result: _count(result.epochs), True),
    ("Best", lambda result: _count(result.best_epoch), True),
    ("Time", lambda result: _seconds(result.wall_seconds), True),
    ("Rows", lambda result: _count(result.n_rows), True),
)


def _ordered(names: Iterable[str]) -> list[str]:
    """Distinct metric names by family, then by cut-off."""
    distinct = list(dict.fromkeys(names))
    families = list(dict.fromkeys([*_METRIC_LABELS, *(_split(name)[0] for name in distinct)]))
    return sorted(distinct, key=lambda name: (families.index(_split(name)[0]), _split(name)[1]))


def _split(name: str) -> tuple[str, int]:
    """``ndcg@10`` -> ``("ndcg", 10)``; a name without cut-off has 0."""
    family, _, cutoff = name.partition("@")
    return family.lower(), int(cutoff) if cutoff.isdigit() else 0


def _metric_label(name: str) -> str:
    family, separator, cutoff = name.partition("@")
    return _METRIC_LABELS.get(family.lower(), family) + separator + cutoff


def _metric_cell(value: float | None) -> str:
    return NOT_RUN if value is None else f"{value:.4f}"


def _fold(widths: Sequence[int], width: int) -> list[list[int]]:
    """Groups of columns that fit into ``width``, each led by column 0; a group has at least one more column."""
    groups: list[list[int]] = [[0]]
    used = widths[0]
    for column in range(1, len(widths)):
        if used + 2 + widths[column] > width and len(groups[-1]) > 1:
            groups.append([0])
            used = widths[0]
        groups[-1].append(column)
        used += 2 + widths[column]
    return groups
