"""Plots of a table of results: metrics and differences with intervals, learning curves, accuracy against cost."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.report.layout import Line, lines_of, metric_label, test_metrics
from recbole_llm.report.plots import DPI, SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recbole_llm.report.table import ResultTable, RunResult

FORMATS = ("png", "pdf", "svg")
CAPTIONS = {  # of the files, by their names
    "comparison": "The metric of the comparisons, and how models differ from the baseline",
    "learning": "Training and validation by epoch",
    "cost": "Accuracy against cost",
}
# Text stays text, so that a page can show and search it; names inside a file do not depend on chance.
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "recbole-llm"}
_NO_TIME = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same table gives the same file


def plot_table(table: ResultTable, folder: str | os.PathLike[str]) -> list[Path]:
    """Save :func:`comparison_figure`, :func:`learning_figure` and :func:`cost_figure` as PNG, PDF and SVG.

    Args:
        table: its run folders give the learning curves.
        folder: it must exist.

    Returns:
        ``comparison``, ``learning`` and ``cost``, with ``.png``, ``.pdf`` and ``.svg`` each; none of a table without
        metrics.
    """
    from matplotlib import rc_context

    if not test_metrics(table):
        return []
    figures = {"comparison": comparison_figure, "learning": learning_figure, "cost": cost_figure}
    paths = []
    with rc_context(_SVG):
        for name, draw in figures.items():
            figure = draw(table)
            for kind in FORMATS:
                paths.append(Path(folder) / f"{name}.{kind}")
                see_through = kind == "svg"  # on a page of any colour
                figure.savefig(paths[-1], format=kind, dpi=DPI, metadata=_NO_TIME.get(kind), transparent=see_through)
    return paths


def comparison_figure(table: ResultTable) -> Figure:
    """The metric of the comparisons by model, a point for each seed, and the differences from the baseline.

    Args:
        table: table of results with test metrics.

    Returns:
        A figure with one panel of bars and, where models were compared, one of differences: the thick line is the 95 %
        interval over users, the thin one over seeds and users.
    """
    from matplotlib.figure import Figure

    metric, lines = test_metrics(table)[0], lines_of(table.results)
    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle(table.title, parse_math=False)
    if table.comparisons:
        bars, differences = figure.subplots(1, 2)
        _draw_differences(differences, table)
    else:
        bars = figure.subplots()
    indices = range(len(lines))
    values = [[value for one in line.results if (value := one.test.get(metric)) is not None] for line in lines]
    deviations = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in values]
    bars.barh(indices, [line.mean(metric) or 0.0 for line in lines], xerr=deviations, color="C0", alpha=0.6)
    for index, own in enumerate(values):
        bars.plot(own, [index] * len(own), "o", color="C0", markersize=4)
    _name_lines(bars, [line.model for line in lines])
    several = any(len(line.results) > 1 for line in lines)
    told = ", a point for each seed, ± standard deviation" if several else ""
    bars.set_title(metric_label(metric) + told, fontsize="medium")
    return figure


def _draw_differences(axes: Axes, table: ResultTable) -> None:
    for index, one in enumerate(table.comparisons):
        colour = "C2" if one.is_significant and one.difference > 0 else "C3" if one.is_significant else "0.5"
        if one.seeds_and_users is not None:
            axes.plot(one.seeds_and_users, [index, index], color=colour, linewidth=1)
        axes.plot(one.users, [index, index], color=colour, linewidth=4, solid_capstyle="butt", alpha=0.6)
        axes.plot([one.difference], [index], "o", color=colour)
    axes.axvline(0, color="0.5", linestyle="--", linewidth=1, zorder=0)
    axes.margins(y=0.3)
    _name_lines(axes, [one.model for one in table.comparisons])
    first = table.comparisons[0]
    axes.set_title(f"{metric_label(first.metric)} − {first.baseline}, 95 % intervals", fontsize="medium")
    axes.set_xlabel("thick: over users; thin: over seeds and users")


def _name_lines(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def learning_figure(table: ResultTable) -> Figure:
    """Training loss and validation metric by epoch, a line for each run, as far as run folders tell.

    Args:
        table: the folders of its results hold ``history.json``.

    Returns:
        A figure with two panels. Losses of different models are of different kinds: each is drawn over its first.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle("Learning curves", parse_math=False)
    losses, metrics = figure.subplots(1, 2)
    metric = test_metrics(table)[0]
    for index, line in enumerate(lines_of(table.results)):
        for number, result in enumerate(line.results):
            history, label = _history(result), line.model if number == 0 else "_"  # one entry in the legend
            own = [(record["epoch"], loss) for record in history if (loss := _loss(record)) is not None]
            if own and own[0][1]:
                epochs, values = zip(*own, strict=True)
                alone = "o" if len(epochs) == 1 else None  # a line of one point shows nothing
                share = [value / own[0][1] for value in values]
                losses.plot(epochs, share, marker=alone, markersize=3, color=f"C{index}", label=label)
            valid = [
                (record["epoch"], value)
                for record in history
                if (value := (record.get("valid") or {}).get(metric)) is not None
            ]
            if valid:
                metrics.plot(*zip(*valid, strict=True), marker="o", markersize=3, color=f"C{index}", label=label)
    losses.set_title("training loss over that of the first epoch", fontsize="medium")
    metrics.set_title(f"validation {metric_label(metric)}", fontsize="medium")
    for axes in (losses, metrics):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
        else:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="0.5")
    return figure


def _history(result: RunResult) -> list[dict[str, Any]]:
    file = Path(result.folder) / "history.json"
    if not result.folder or not file.is_file():
        return []
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _loss(record: dict[str, Any]) -> float | None:
    """The training loss of an epoch; the sum where a model has several."""
    loss = record.get("train_loss")
    return float(sum(loss)) if isinstance(loss, list) else None if loss is None else float(loss)


def cost_figure(table: ResultTable) -> Figure:
    """The metric of the comparisons against wall time and, of LLMs, against tokens; a point for each run.

    Args:
        table: table of results with test metrics and wall times.

    Returns:
        A figure with a panel for the time and, where an LLM was trained, one for the tokens it was trained on.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle("Accuracy against cost", parse_math=False)
    costs = [name for name in _COSTS if any(getattr(result, name) for result in table.results)] or ["wall_seconds"]
    for axes, cost in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
        _draw_costs(axes, table, cost)
    return figure


_COSTS = {  # a fact of a run to the label of its axis
    "wall_seconds": "wall time in seconds, without stages reused from an earlier run",
    "train_tokens": "tokens trained on, prompts included",
}


_LONG = 10_000  # a number from here on has commas


def _draw_costs(axes: Axes, table: ResultTable, cost: str) -> None:
    """Runs that have no such cost are left out; a model keeps its colour in every panel."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    metric = test_metrics(table)[0]
    for index, line in enumerate(lines_of(table.results)):
        points = _points(line, metric, cost)
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=f"C{index}", label=line.model)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < _LONG else f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_xlim()
    axes.set_xlim(low / 2, high * 2)  # so wide that some of the ticks are inside
    axes.set_xlabel(_COSTS[cost], fontsize="small")
    axes.set_ylabel(metric_label(metric))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)


def _points(line: Line, metric: str, cost: str) -> list[tuple[float, float]]:
    return [
        (max(spent, 1e-3), value)
        for result in line.results
        if (spent := getattr(result, cost)) is not None and (value := result.test.get(metric)) is not None
    ]
