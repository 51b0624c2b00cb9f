"""The plot of a coreset: selected rows by level of score, and the cost of the selection."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.report.plots import DPI

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (11.0, 4.5)  # inches
ESTIMATE = "fine-tuning on all rows, estimated"


def plot_coreset(path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Path:
    """Save :func:`coreset_figure` of the other arguments as a PNG. Returns: the path.

    Example:
        >>> plot_coreset("coreset.png", [0.1, 0.9], [0, 1], [True, False], {"influence": 2.0}, {"fine-tune": 5.0}).name
        'coreset.png'
    """
    coreset_figure(*args, **kwargs).savefig(path, format="png", dpi=DPI)
    return Path(path)


def coreset_figure(
    scores: Sequence[float] | np.ndarray,
    strata: Sequence[int] | np.ndarray,
    selected: Sequence[bool] | np.ndarray,
    selection_seconds: Mapping[str, float],
    tuning_seconds: Mapping[str, float],
    title: str = "Coreset",
    n_all: int | None = None,
) -> Figure:
    """Rows and selected rows by stratum of the score, and the cost of selection next to that of fine-tuning.

    Args:
        scores: ``[n]``, finite.
        strata: int ``[n]``, equal-width intervals of the score from 0 on; -1 for a row that was cut.
        selected: bool ``[n]``.
        selection_seconds: by part of the selection.
        tuning_seconds: by tuning stage.
        title: heading of the figure.
        n_all: rows there are to train on; given this, a bar shows what tuning on all of them would take at the same
            seconds per row.

    Returns:
        A figure with two axes.

    Example:
        >>> figure = coreset_figure([0.1, 0.9], [0, 1], [True, False], {"influence": 2.0}, {"fine-tune": 5.0})
        >>> len(figure.axes)
        2
    """
    from matplotlib.figure import Figure

    scores, strata, selected = np.asarray(scores, dtype=float), np.asarray(strata), np.asarray(selected, dtype=bool)
    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2)
    _draw_strata(left, scores, strata, selected)
    bars = {**selection_seconds, **tuning_seconds}
    if n_all and selected.any():
        bars[ESTIMATE] = sum(tuning_seconds.values()) * n_all / selected.sum()
    _draw_costs(right, bars, len(selection_seconds))
    return figure


def _draw_strata(axes: Axes, scores: np.ndarray, strata: np.ndarray, selected: np.ndarray) -> None:
    """Counts per stratum, over the middle of its scores; rows that were cut stand apart at the right."""
    kept = strata >= 0
    n_groups = int(strata.max(initial=0)) + 1
    low, high = (scores[kept].min(), scores[kept].max()) if kept.any() else (0.0, 0.0)
    width = (high - low) / n_groups or 1.0
    middles = low + (np.arange(n_groups) + 0.5) * width
    rows = np.bincount(strata[kept], minlength=n_groups)
    chosen = np.bincount(strata[kept & selected], minlength=n_groups)
    for counts, colour, label in (
        (rows, "0.8", f"rows ({len(scores):,})"),
        (chosen, "C0", f"selected ({int(selected.sum()):,})"),
    ):
        some = counts > 0  # of many strata most may be empty, and a bar without height takes as long to draw
        axes.bar(middles[some], counts[some], 0.9 * width, color=colour, label=label)
    if not kept.all():
        label = f"cut ({int((~kept).sum()):,})"
        axes.bar(high + 1.5 * width, (~kept).sum(), 0.9 * width, color="C3", alpha=0.5, label=label)
    axes.set_yscale("symlog", linthresh=1)  # a stratum of one row shows beside one of thousands
    axes.set_ylim(bottom=0)
    axes.set_xlabel("score")
    axes.set_title("rows by stratum", fontsize="medium")
    axes.legend(fontsize="small")


def _draw_costs(axes: Axes, seconds: Mapping[str, float], n_selection: int) -> None:
    """One bar per part, the first at the top."""
    names = list(seconds)
    colours = ["C1"] * n_selection + ["C2"] * (len(names) - n_selection)
    heights = np.arange(len(names))[::-1]
    bars = axes.barh(heights, list(seconds.values()), color=colours)
    for name, bar in zip(names, bars, strict=True):
        if name == ESTIMATE:
            bar.set(alpha=0.4, hatch="//")
    axes.bar_label(bars, [f"{value:,.1f} s" for value in seconds.values()], padding=3, fontsize="small")
    axes.set_yticks(heights, names, parse_math=False)
    axes.set_xlim(0, 1.25 * max([*seconds.values(), 1e-3]))
    axes.set_xlabel("seconds")
    axes.set_title("cost: selection, and fine-tuning", fontsize="medium")
