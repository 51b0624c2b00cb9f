"""The plot of accuracy against the number of items shown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.report.plots import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_lengths(path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Path:
    """Save :func:`length_figure` as a PNG; returns the path.

    Example:
        >>> points = [{"length": None, "metric": "ndcg@10", "value": 0.2, "shown": 2.5}]
        >>> points += [{"length": 5, "metric": "ndcg@10", "value": 0.19, "shown": 4.8}]
        >>> plot_lengths("lengths.png", points).name
        'lengths.png'
    """
    length_figure(*args, **kwargs).savefig(path, format="png", dpi=DPI)
    return Path(path)


def length_figure(points: Sequence[Mapping[str, Any]], title: str = "Length of histories") -> Figure:
    """A metric against the items, or the tokens, that a row shows on average, for fixed lengths and for chosen ones.

    Args:
        points: with ``length`` (None: chosen for each row), ``metric``, ``value`` and ``shown``; where they have
            ``tokens``, these are the axis.
        title: heading of the figure.

    Returns:
        A figure with one axes; its lines carry their names as labels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    by = "tokens" if all("tokens" in point for point in points) else "shown"
    fixed = [point for point in points if point["length"] is not None]
    axes.plot([p[by] for p in fixed], [p["value"] for p in fixed], marker="o", label="one length for all")
    for point in fixed:
        axes.annotate(str(point["length"]), (point[by], point["value"]), (4, 4), textcoords="offset points")
    chosen = [point for point in points if point["length"] is None]
    if chosen:
        at = [[point[axis] for point in chosen] for axis in (by, "value")]
        axes.plot(*at, marker="*", linestyle="none", markersize=14, label="chosen for each row")
    axes.set_xlabel("tokens of a prompt, on average" if by == "tokens" else "items of history shown, on average")
    axes.set_ylabel(points[0]["metric"])
    axes.set_title(title)
    axes.legend()
    return figure
