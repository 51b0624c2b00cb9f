"""The plot of a GORACS selection: objective by exchange, and a map of the rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.report.coreset_plot import SIZE
from recbole_llm.report.plots import DPI

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

_AREA = 2e4  # of all marks of a kind together, in square points: many are small, few are large


def plot_goracs(path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Path:
    """Save :func:`goracs_figure` of the other arguments as a PNG. Returns: the path.

    Example:
        >>> traces, points, valid_points = {"greedy": [2.0, 1.5]}, [[0.0, 0.0], [1.0, 1.0]], [[0.5, 0.5]]
        >>> plot_goracs("goracs.png", traces, points, [True, False], valid_points).name
        'goracs.png'
    """
    goracs_figure(*args, **kwargs).savefig(path, format="png", dpi=DPI)
    return Path(path)


def goracs_figure(
    traces: Mapping[str, Sequence[float]],
    points: ArrayLike,
    selected: ArrayLike,
    valid_points: ArrayLike,
    title: str = "GORACS",
) -> Figure:
    """The objective after the start and after every exchange, and a map of the rows (arXiv 2506.04015).

    Args:
        traces: name of a start, or of a class and a start, to its objectives; smaller is better.
        points: ``[n, 2]``, training rows on the map, such as those of :func:`map_points`.
        selected: bool ``[n]``.
        valid_points: ``[m, 2]``, validation rows on the same map.
        title: heading of the figure.

    Returns:
        A figure with two axes. Lines and points carry their names as labels.

    Example:
        >>> figure = goracs_figure({"greedy": [2.0, 1.5]}, [[0.0, 0.0], [1.0, 1.0]], [True, False], [[0.5, 0.5]])
        >>> len(figure.axes)
        2
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2)
    _draw_traces(left, traces)
    _draw_map(right, np.asarray(points), np.asarray(selected, dtype=bool), np.asarray(valid_points))
    return figure


def _draw_traces(axes: Axes, traces: Mapping[str, Sequence[float]]) -> None:
    """One line per start; its last point is marked, which is all there is without exchanges."""
    from matplotlib.ticker import MaxNLocator

    for number, (name, trace) in enumerate(traces.items()):
        label = f"{name}: {trace[0]:.4f} to {trace[-1]:.4f}"
        axes.plot(range(len(trace)), trace, color=f"C{number}", marker="o", markevery=[-1], markersize=4, label=label)
    axes.set_xlabel("exchanges")
    axes.set_ylabel("objective")
    axes.set_title("objective by exchange (smaller is better)", fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))  # the default's
    if traces:
        axes.legend(fontsize="small")


def _draw_map(axes: Axes, points: np.ndarray, selected: np.ndarray, valid_points: np.ndarray) -> None:
    """All training rows below, validation rows over them, the selected rows on top."""
    for own, colour, most, name in (
        (points, "0.8", 12, "training rows"),
        (valid_points, "C1", 12, "validation rows"),
        (points[selected], "C0", 24, "selected"),
    ):
        if not len(own):
            continue
        size = float(np.clip(_AREA / len(own), 2, most))
        label = f"{name} ({len(own):,})"
        axes.scatter(own[:, 0], own[:, 1], s=size, color=colour, linewidths=0, rasterized=True, label=label)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("embeddings, first two principal components", fontsize="medium")
    axes.legend(fontsize="small", markerscale=2)
