"""The plot of re-ranking: accuracy against diversity."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.report.plots import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_trade_off(path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Path:
    """Save :func:`trade_off_figure` as a PNG; returns the path.

    Example:
        >>> curve = [{"lambda": None, "ndcg": 0.2, "distance": 0.5}, {"lambda": 0.5, "ndcg": 0.19, "distance": 0.7}]
        >>> plot_trade_off("rerank.png", curve, chosen=0.5).name
        'rerank.png'
    """
    trade_off_figure(*args, **kwargs).savefig(path, format="png", dpi=DPI)
    return Path(path)


def trade_off_figure(
    curve: Sequence[Mapping[str, Any]], chosen: float | None = None, title: str = "Re-ranking"
) -> Figure:
    """NDCG of the validation rows against the mean distance within their lists, a point per trade-off.

    Args:
        curve: points with ``lambda`` (None: without re-ranking), ``ndcg`` and ``distance``.
        chosen: the ``lambda`` that was taken.
        title: heading of the figure.

    Returns:
        A figure with one axes; its lines carry their names as labels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    tried = [point for point in curve if point["lambda"] is not None]
    axes.plot([p["distance"] for p in tried], [p["ndcg"] for p in tried], marker="o", label="re-ranked")
    for point in tried:
        axes.annotate(f"{point['lambda']:g}", (point["distance"], point["ndcg"]), (4, 4), textcoords="offset points")
    for name, marker, points in (
        ("not re-ranked", "s", [point for point in curve if point["lambda"] is None]),
        ("chosen", "*", [point for point in tried if point["lambda"] == chosen]),
    ):
        if points:
            at = [[point[axis] for point in points] for axis in ("distance", "ndcg")]
            axes.plot(*at, marker=marker, linestyle="none", markersize=12, label=name)
    axes.set_xlabel("mean distance within a list")
    axes.set_ylabel("NDCG of the validation rows")
    axes.set_title(title)
    axes.legend()
    return figure
