"""The layout of a table of results: a line per model with its seeds, and columns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_llm.report.table import ResultTable, RunResult

NOT_RUN, UNKNOWN = "not run", "-"  # a metric that was not measured; a fact that does not apply
DOUBT = "!"  # beside a run whose training or answers give reason to doubt it
OTHER = "†"  # beside results of another commit than the table's
FALSE_ALARMS = {2: 11, 3: 9}  # seeds, and percent of comparisons of equal models with p < .05, at most
DIFFERS = "*"  # beside a metric that differs from the baseline's
SUMMARY = {"valid_loss": "Valid loss", "distinct_answers": "Distinct answers", "top_answer": "Top answer"}
SUMMARY |= {"titles_known": "Titles known", "sequences_known": "Sequences known"}
SMALLER_IS_BETTER = ("logloss", "mae", "rmse", "giniindex", "averagepopularity")
NEITHER_IS_BETTER = ("novelty", "popularitylift", "embeddingdistance")
# In the order of the columns.
_METRIC_LABELS = {
    "recall": "Recall",
    "ndcg": "NDCG",
    "mrr": "MRR",
    "hit": "Hit",
    "category_hit": "CategoryHit",
    "ndcg_head": "NDCG of head",
    "ndcg_tail": "NDCG of tail",
    "hit_head": "Hit of head",
    "hit_tail": "Hit of tail",
    "ndcg_warm": "NDCG of warm",
    "ndcg_cold": "NDCG of cold",
    "itemcoverage": "Coverage",
    "giniindex": "Gini",
    "novelty": "Novelty",
    "popularitylift": "PopularityLift",
    "embeddingdistance": "ListDistance",
    "auc": "AUC",
    "logloss": "LogLoss",
    "hit_ratio": "HitRatio@1",
    "valid_ratio": "ValidRatio",
    "hit_ratio_valid": "HitRatio@1 of valid",
    "hit_ratio_reference": "HitRatio@1 (reference)",
    "valid_ratio_reference": "ValidRatio (reference)",
    "hit_ratio_valid_reference": "HitRatio@1 of valid (reference)",
}


@dataclass(frozen=True)
class Line:
    """A line of a table: one run, or the runs of one model that differ in their seed."""

    model: str
    results: tuple[RunResult, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of all runs of the line."""
        return tuple(warning for result in self.results for warning in result.warnings)

    def mean(self, metric: str) -> float | None:
        """Mean of a test metric over the runs; None where one of them lacks it."""
        values = [result.test.get(metric) for result in self.results]
        return None if None in values else statistics.fmean(value for value in values if value is not None)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: its heading.
        cells: a text for each line.
        metric: name of the metric it shows; empty for facts.
        best: indices of the lines whose value is the best one; none where only one line has a value.
    """

    head: str
    cells: tuple[str, ...]
    metric: str = ""
    best: frozenset[int] = frozenset()


def lines_of(results: Sequence[RunResult]) -> list[Line]:
    """Runs of one model on one data set with different seeds are one line."""
    groups: dict[tuple[str, str], list[RunResult]] = {}
    for result in results:
        groups.setdefault((result.model, result.dataset), []).append(result)
    lines: list[Line] = []
    for (model, _), own in groups.items():
        seeds = {result.seed for result in own}
        together = len(seeds) == len(own) and None not in seeds
        lines += [Line(model, tuple(own))] if together else [Line(model, (result,)) for result in own]
    return lines


def columns_of(table: ResultTable) -> list[Column]:
    """All columns: model, facts that tell runs apart, what answers and training look like, then the test metrics."""
    lines = lines_of(table.results)
    models = tuple(f"{line.model} {_marks(table, line)}".rstrip() for line in lines)
    columns = [Column("Model", models)]
    for head, show, always in _FACTS:
        cells = tuple(show(line) for line in lines)
        if always or len(set(cells) - {UNKNOWN}) > 1:
            columns.append(Column(head, cells))
    if any(len(line.results) > 1 for line in lines):
        columns = [column for column in columns if column.head not in ("Seed", "Seeds")]
        columns.insert(1, Column("Seeds", tuple(str(len(line.results)) for line in lines)))
    if any(result.auxiliary_rows is not None for result in table.results):
        columns.append(Column("Auxiliary rows", tuple(map(_auxiliary_cell, lines))))
    for name, head in SUMMARY.items():
        if any(result.summary.get(name) is not None for result in table.results):
            columns.append(Column(head, tuple(_summary_cell(line, name) for line in lines)))
    return columns + [_metric_column(table, lines, name) for name in test_metrics(table)]


def test_metrics(table: ResultTable) -> list[str]:
    """Test metrics in the order of the columns, that of the comparisons first."""
    names = ordered(name for result in table.results for name in result.test)
    return sorted(names, key=lambda name: name != table.metric)


def repeated(table: ResultTable) -> dict[str, str]:
    """Families of metrics that equal another one's at every cut-off: ``{"hit": "recall"}`` with one target per row."""
    names = test_metrics(table)
    values = {name: [result.test.get(name) for result in table.results] for name in names}
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(split(name)[0], []).append(name)
    same: dict[str, str] = {}
    for position, (family, own) in enumerate(families.items()):
        for other in list(families)[:position]:
            pairs = [(name, f"{other}@{split(name)[1]}") for name in own]
            if other not in same and all(twin in values and values[name] == values[twin] for name, twin in pairs):
                same[family] = other
                break
    return same


def _metric_column(table: ResultTable, lines: Sequence[Line], name: str) -> Column:
    means = [line.mean(name) for line in lines]
    known = [mean for mean in means if mean is not None]
    best: frozenset[int] = frozenset()
    if len(known) > 1 and split(name)[0] not in NEITHER_IS_BETTER:
        top = min(known) if split(name)[0] in SMALLER_IS_BETTER else max(known)
        best = frozenset(position for position, mean in enumerate(means) if mean == top)
    differs = {one.model for one in table.comparisons if one.is_significant and one.metric == name}
    cells = [spread([result.test.get(name) for result in line.results]) for line in lines]
    marked = [cell + DIFFERS * (line.model in differs) for cell, line in zip(cells, lines, strict=True)]
    return Column(metric_label(name), tuple(marked), name, best)


def spread(values: Sequence[float | None]) -> str:
    """A value, or the mean of several with their standard deviation."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return NOT_RUN
    mean = f"{statistics.fmean(known):.4f}"
    return f"{mean} ± {statistics.stdev(known):.4f}" if len(known) > 1 else mean


def _marks(table: ResultTable, line: Line) -> str:
    own = [note for result in line.results for note in notes_of(result)]
    numbers = "".join(f"[{number}]" for number, note in numbered_notes(table) if note in own)
    other = any(is_other(table, result) for result in line.results)
    return DOUBT * bool(line.warnings) + OTHER * other + numbers


def is_other(table: ResultTable, result: RunResult) -> bool:
    """Whether a result is of another commit, or version, than the table."""
    return bool(result.revision and table.revision) and result.revision != table.revision


def notes_of(result: RunResult) -> tuple[str, ...]:
    """The effective point is a footnote as well, where it says more than the model's name."""
    return ((result.point,) if result.point not in ("", result.model) else ()) + result.notes


def numbered_notes(table: ResultTable) -> list[tuple[int, str]]:
    """The footnotes."""
    return list(enumerate(dict.fromkeys(note for result in table.results for note in notes_of(result)), start=1))


def remarks(table: ResultTable) -> list[str]:
    """The warnings of the marked runs, results of other commits, and what the marks of differences mean."""
    several = len({result.seed for result in table.results} - {None}) > 1
    named = [(f"{result.model}{f', seed {result.seed}' if several else ''}", result) for result in table.results]
    lines = [f"{DOUBT} {name}: {warning}" for name, result in named for warning in result.warnings]
    for name, result in named:
        if is_other(table, result):
            lines.append(f"{OTHER} {name}: measured with {result.revision}, the table with {table.revision}")
    return lines


def comparison_note(table: ResultTable) -> str:
    """What the p-values of a table's comparisons count; empty without any."""
    if not table.comparisons:
        return ""
    n, baseline = len(table.comparisons), table.comparisons[0].baseline
    once = [one.model for one in table.comparisons if one.seeds_and_users is None]
    over = "seeds and users" if not once else "users only, as one seed tells nothing of others"
    if once and len(once) < n:
        over = f"seeds and users; over users only for {', '.join(once)}, run with one seed"
    corrected = f", corrected by Holm for {n} comparisons" if n > 1 else ""
    few = few_seeds_note(one.n_seeds for one in table.comparisons)
    return f"{DIFFERS} differs from {baseline}: p < .05 over {over}{corrected}" + (f". {few}" if few else "")


def few_seeds_note(n_seeds: Iterable[tuple[int, int]]) -> str:
    """What p-values over few seeds are worth, in words; empty where none are over two or three.

    Args:
        n_seeds: seeds of both models of each comparison of a table.

    Returns:
        A sentence with the largest shares that were found in simulations (docs/statistics.md).

    Example:
        >>> few_seeds_note([(2, 2), (5, 5)])
        'With 2 seeds up to 11 % of models that do not differ have p < .05, not 5 %.'
    """
    counts = {min(both) for both in n_seeds}
    told = [f"with {k} seeds up to {FALSE_ALARMS[k]} %" for k in sorted(counts & FALSE_ALARMS.keys())]
    shares = " and ".join(told)
    return f"{shares[:1].upper()}{shares[1:]} of models that do not differ have p < .05, not 5 %." if told else ""


def comparison_cells(table: ResultTable) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the comparisons with the baseline."""
    first = table.comparisons[0]
    head = [f"{metric_label(first.metric)} − {first.baseline}", "Difference", "95 % over users"]
    head += ["95 % over seeds and users", "p", "Holm"]
    rows = []
    for one in table.comparisons:
        both = UNKNOWN if one.seeds_and_users is None else interval(one.seeds_and_users)
        cells = [one.model, f"{one.difference:+.4f}", interval(one.users), both, f"{one.p:.3f}"]
        rows.append([*cells, f"{one.p_holm:.3f}{DIFFERS * one.is_significant}"])
    return head, rows


def interval(ends: tuple[float, float]) -> str:
    """Both ends of an interval."""
    return f"{ends[0]:+.4f} … {ends[1]:+.4f}"


def _range(values: Iterable[int | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return UNKNOWN
    return str(known[0]) if len(set(known)) == 1 else f"{min(known)}–{max(known)}"


def _seconds(line: Line) -> str:
    known = [result.wall_seconds for result in line.results if result.wall_seconds is not None]
    if not known:
        return UNKNOWN
    seconds = statistics.fmean(known)
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m{rest:02d}s" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def _auxiliary_cell(line: Line) -> str:
    return _range(result.auxiliary_rows for result in line.results)


def _summary_cell(line: Line, name: str) -> str:
    known = [value for result in line.results if (value := result.summary.get(name)) is not None]
    return f"{statistics.fmean(known):.3f}" if known else UNKNOWN


_FACTS: Sequence[tuple[str, Callable[[Line], str], bool]] = (  # head, cell, shown even if all lines agree
    ("Data", lambda line: line.results[0].dataset, False),
    ("Seed", lambda line: _range(result.seed for result in line.results), False),
    ("Train rows", lambda line: _range(result.train_rows for result in line.results), True),
    ("Epochs", lambda line: _range(result.epochs for result in line.results), True),
    ("Best", lambda line: _range(result.best_epoch for result in line.results), True),
    ("Time", _seconds, True),
    ("Rows", lambda line: _range(result.n_rows for result in line.results), True),
)


def ordered(names: Iterable[str]) -> list[str]:
    """Distinct metric names by family, then by cut-off."""
    distinct = list(dict.fromkeys(names))
    families = list(dict.fromkeys([*_METRIC_LABELS, *(split(name)[0] for name in distinct)]))
    return sorted(distinct, key=lambda name: (families.index(split(name)[0]), split(name)[1]))


def split(name: str) -> tuple[str, int]:
    """``ndcg@10`` -> ``("ndcg", 10)``; a name without cut-off has 0."""
    family, _, cutoff = name.partition("@")
    return family.lower(), int(cutoff) if cutoff.isdigit() else 0


def metric_label(name: str) -> str:
    """``ndcg@10`` -> ``NDCG@10``."""
    family, separator, cutoff = name.partition("@")
    return _METRIC_LABELS.get(family.lower(), family) + separator + cutoff


def flat(result: RunResult, metrics: Sequence[str], left_out: Sequence[str]) -> dict[str, Any]:
    """A run as one line of plain values, unrounded; validation metrics carry the prefix ``valid_``."""
    line = {name: value for name, value in vars(result).items() if name not in left_out}
    line |= {name: result.test.get(name) for name in metrics}
    line |= {f"valid_{name}": result.valid.get(name) for name in metrics}
    line |= {name: result.summary.get(name) for name in SUMMARY}
    return {**line, "notes": "; ".join(result.notes), "warnings": "; ".join(result.warnings)}
