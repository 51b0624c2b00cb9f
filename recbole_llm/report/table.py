"""The table of a command: all models side by side, for the terminal, as Markdown, LaTeX, CSV, JSON and Parquet."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recbole_llm.report.compared import Compared
from recbole_llm.report.environment import NO_CHECKOUT
from recbole_llm.report.layout import NOT_RUN, SUMMARY, flat, ordered
from recbole_llm.report.render import to_html, to_latex, to_markdown, to_text
from recbole_llm.report.rows import write_rows

__all__ = ["NOT_RUN", "TINY_LLM_NOTE", "ResultTable", "RunResult"]

TINY_LLM_NOTE = "tiny LLM: for trying out, not for quality claims"
_NOT_FACTS = ("test", "valid", "summary", "notes", "warnings")
_FORMAT = 1


@dataclass(frozen=True)
class RunResult:
    """One line of a :class:`ResultTable`: one model on one data set with one seed.

    Attributes:
        model: name in the table.
        dataset: name of the data set.
        point: effective point of the run, such as ``BIGRec adapter=lora coreset=none curriculum=none``.
        seed: seed of the run.
        train_rows: rows trained on.
        epochs: epochs trained.
        best_epoch: epoch evaluated, counted from 1.
        wall_seconds: wall time of the run.
        n_rows: rows evaluated.
        auxiliary_rows: rows that the auxiliary recommender was trained on, where the model borrows from one.
        train_tokens: tokens that the LLM was trained on, all epochs and stages together.
        folder: the run's own folder.
        test: unrounded metrics on the test rows under RecBole's names (``ndcg@10``), and ``category_hit@10``, or those
            of answers among candidates (``hit_ratio``); None or missing: not run.
        valid: the same on the validation rows.
        notes: remarks to print below the table, such as ``TINY_LLM_NOTE``.
        summary: ``distinct_answers`` (different answers over rows) and ``top_answer`` (share of rows that got the most
            frequent one) of the test rows, ``valid_loss`` (per token of the validation rows' answers), and, with
            ``beyond_accuracy``, ``titles_known`` and ``sequences_known`` (by the untuned LLM); those it has.
        warnings: reasons to doubt the run, a line each; the table marks it.
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
    auxiliary_rows: int | None = None
    train_tokens: int | None = None
    folder: str = ""
    test: dict[str, float | None] = field(default_factory=dict)
    valid: dict[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    summary: dict[str, float | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    revision: str = ""


@dataclass(frozen=True, repr=False)
class ResultTable:
    """Runs side by side: metrics, comparisons with a baseline, and what is needed to repeat them.

    Attributes:
        results: one entry per run, in the order of the rows.
        environment: see ``recbole_llm.report.versions``.
        data_hash: data set name -> see ``recbole_llm.report.data_hash``.
        command: the command line that gave the results.
        title: heading of the Markdown.
        reading: counts of the data set's lines that were read or left out, in words.
        metric: the metric by which models are compared.
        comparisons: the models' differences from a baseline.

    Example:
        >>> table = ResultTable((RunResult("Pop", "ml-100k", test={"ndcg@10": 0.0163}),))
        >>> table
        <ResultTable of 1 run: Pop on ml-100k; print it, or see to_frame()>
        >>> print(table)
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

    def __str__(self) -> str:
        """The table for the terminal, :meth:`text`."""
        return self.text().rstrip("\n")

    def __repr__(self) -> str:
        """Which runs it holds."""
        n_runs = f"{len(self.results)} run{'' if len(self.results) == 1 else 's'}"
        names = (list(dict.fromkeys(getattr(one, key) for one in self.results)) for key in ("model", "dataset"))
        of_what = " on ".join(", ".join(own) for own in names if own)
        return f"<ResultTable of {n_runs}: {of_what}; print it, or see to_frame()>"

    @property
    def metrics(self) -> list[str]:
        """Metric columns: Recall, NDCG, MRR, Hit, CategoryHit, then others as they come, each by growing cut-off."""
        return ordered(name for result in self.results for name in (*result.test, *result.valid))

    @property
    def revision(self) -> str:
        """What tells the code of the table from another: its commit, or its version; empty where it is not known."""
        found = self.environment.get("git_revision", "")
        return f"version {self.environment.get('recbole-llm', '')}" if found == NO_CHECKOUT else found

    def text(self, width: int = 100, bold: bool = False) -> str:
        """Text for the terminal: one block of at most ``width`` characters a line, then comparisons and footnotes.

        Runs of one model are one line, with mean and standard deviation. The metric of the comparisons comes first;
        metrics that repeat another are left out, and so are columns without room, with a line that names them.

        Args:
            width: width of the block; footnotes may be longer.
            bold: whether the best values are set in bold, by the terminal's codes.
        """
        return to_text(self, width, bold)

    def markdown(self) -> str:
        """Markdown for GitHub: all columns, best values in bold, comparisons, footnotes, command, data and versions."""
        return to_markdown(self)

    def latex(self) -> str:
        """LaTeX for a paper (booktabs): metrics with the best values in bold, then the comparisons."""
        return to_latex(self)

    def csv(self) -> str:
        """One line per run, unrounded; validation metrics carry the prefix ``valid_``; empty cells were not run."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self._columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._line(result) for result in self.results)
        return stream.getvalue()

    def _repr_html_(self) -> str:
        """What a notebook shows: all columns, comparisons and footnotes."""
        return to_html(self)

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame`` with a line per run, unrounded: facts, test metrics, and ``valid_<metric>``."""
        import pandas as pd  # only here: the rest of a table needs no pandas

        return pd.DataFrame([self._line(result) for result in self.results], columns=self._columns())

    def _columns(self) -> list[str]:
        facts = [name for name in RunResult.__dataclass_fields__ if name not in _NOT_FACTS]
        metrics = [*self.metrics, *(f"valid_{name}" for name in self.metrics)]
        return [*facts, *metrics, *SUMMARY, "notes", "warnings"]

    def _line(self, result: RunResult) -> dict[str, Any]:
        return flat(result, self.metrics, _NOT_FACTS)

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
        """Write ``<stem>.md``, ``.csv``, ``.json`` and ``.tex`` into a folder, made if needed; returns their paths."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        contents = {".md": self.markdown(), ".csv": self.csv(), ".json": self.json(), ".tex": self.latex()}
        paths = [Path(folder) / f"{stem}{suffix}" for suffix in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_text(content, encoding="utf-8")
        return paths

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write what every test row of every run got, read from the run folders, as one Parquet file.

        The columns are ``model``, ``seed`` and those of the runs' ``test_*.csv``: ids, outcome, recommended items.

        Args:
            path: the file.

        Returns:
            The path.

        Raises:
            InputError: pyarrow is not installed, or a run folder is gone.
        """
        return write_rows(self.results, Path(path))
