"""Plots of a table of results: metrics and differences with intervals, learning curves, accuracy against cost."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.report.layout import Line, lines_of, metric_label, test_metrics
from recbole_llm.report.plots import DPI, SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recbole_llm.report.table import ResultTable, RunResult

FORMATS = ("png", "pdf")


def plot_table(table: ResultTable, folder: str | os.PathLike[str]) -> list[Path]:
    """Save :func:`comparison_figure`, :func:`learning_figure` and :func:`cost_figure` as PNG and PDF.

    Args:
        table: its run folders give the learning curves.
        folder: it must exist.

    Returns:
        ``comparison``, ``learning`` and ``cost``, with ``.png`` and ``.pdf`` each; none of a table without metrics.
    """
    if not test_metrics(table):
        return []
    figures = {"comparison": comparison_figure, "learning": learning_figure, "cost": cost_figure}
    paths = []
    for name, draw in figures.items():
        figure = draw(table)
        for kind in FORMATS:
            paths.append(Path(folder) / f"{name}.{kind}")
            # No time of writing: the same table gives the same file.
            figure.savefig(paths[-1], format=kind, dpi=DPI, metadata={"CreationDate": None} if kind == "pdf" else None)
    return paths


def comparison_figure(table: ResultTable) -> Figure:
    """The metric of the comparisons by model, a point for each seed; and the differences from the baseline.

    Args:
        table: of results with test metrics.

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
    bars.barh(indices, [line.mean(metric) or 0.0 for line in lines], color="C0", alpha=0.6)
    for index, line in enumerate(lines):
        values = [value for result in line.results if (value := result.test.get(metric)) is not None]
        bars.plot(values, [index] * len(values), "o", color="C0", markersize=4)
    _name_lines(bars, [line.model for line in lines])
    several = any(len(line.results) > 1 for line in lines)
    bars.set_title(metric_label(metric) + (", a point for each seed" if several else ""), fontsize="medium")
    return figure


def _draw_differences(axes: Axes, table: ResultTable) -> None:
    for index, one in enumerate(table.comparisons):
        colour = "C2" if one.is_significant and one.difference > 0 else "C3" if one.is_significant else "0.5"
        if one.seeds_and_users is not None:
            axes.plot(one.seeds_and_users, [index, index], color=colour, linewidth=1)
        axes.plot(one.users, [index, index], color=colour, linewidth=4, solid_capstyle="butt", alpha=0.6)
        axes.plot([one.difference], [index], "o", color=colour)
    axes.axvline(0, color="0.5", linestyle="--", linewidth=1, zorder=0)
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
                losses.plot(epochs, [value / own[0][1] for value in values], color=f"C{index}", label=label)
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
            axes.legend()
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
    """The metric of the comparisons against wall time, a point for each run.

    Args:
        table: of results with test metrics and wall times.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes, metric = figure.subplots(), test_metrics(table)[0]
    for line in lines_of(table.results):
        points = _points(line, metric)
        if points:
            axes.plot(*zip(*points, strict=True), "o", label=line.model)
    axes.set_xscale("log")
    axes.set_xlabel("wall time of the run in seconds, without stages reused from an earlier one")
    axes.set_ylabel(metric_label(metric))
    axes.set_title("Accuracy against cost")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure


def _points(line: Line, metric: str) -> list[tuple[float, float]]:
    return [
        (max(result.wall_seconds, 1e-3), value)
        for result in line.results
        if result.wall_seconds is not None and (value := result.test.get(metric)) is not None
    ]
