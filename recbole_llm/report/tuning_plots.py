"""Plots of a search: the score against each setting, and the importance of settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.report.plots import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3  # settings side by side
PANEL = (4.0, 3.2)  # inches
RATIO = 50.0  # of the largest value to the smallest, from which an axis is logarithmic


def plot_slices(
    path: str | os.PathLike[str],
    values: Mapping[str, Sequence[Any]],
    scores: Sequence[float],
    metric: str,
    title: str = "",
) -> Path:
    """Save :func:`slice_figure` as a PNG.

    Args:
        path: the file; its folder must exist.
        values: setting to its value in each trial.
        scores: scores of the trials.
        metric: name of the score.
        title: heading.

    Returns:
        The path.

    Example:
        >>> plot_slices("slices.png", {"alpha": [0, 1]}, [0.1, 0.2], "ndcg@10").name
        'slices.png'
    """
    slice_figure(values, scores, metric, title).savefig(path, format="png", dpi=DPI)
    return Path(path)


def slice_figure(values: Mapping[str, Sequence[Any]], scores: Sequence[float], metric: str, title: str = "") -> Figure:
    """A panel per setting: a point per trial, later ones darker. Values that are no numbers stand side by side.

    Args:
        values: setting to its value in each trial.
        scores: scores of the trials.
        metric: name of the score.
        title: heading.
    """
    from matplotlib.figure import Figure

    n_columns = min(COLUMNS, max(1, len(values)))
    n_rows = -(-len(values) // n_columns)
    figure = Figure(figsize=(PANEL[0] * n_columns, PANEL[1] * n_rows + 0.4), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for axis, (name, own) in zip(axes.flat, values.items(), strict=False):
        numbers = [value for value in own if isinstance(value, int | float) and not isinstance(value, bool)]
        shown: Sequence[Any] = own
        if len(numbers) < len(own):
            shown = [str(value) for value in own]
        elif own and min(own) > 0 and max(own) / min(own) >= RATIO:
            axis.set_xscale("log")
        axis.scatter(shown, scores, c=range(len(own)), cmap="Blues", edgecolors="0.3", vmin=-0.3 * max(1, len(own)))
        axis.set_xlabel(name)
        axis.set_ylabel(metric)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(values) :]:
        axis.set_visible(False)
    figure.suptitle(title)
    return figure


def plot_importances(path: str | os.PathLike[str], importances: Mapping[str, float], title: str = "") -> Path:
    """Save :func:`importance_figure` as a PNG.

    Args:
        path: the file; its folder must exist.
        importances: setting to its share.
        title: heading.

    Returns:
        The path.

    Example:
        >>> plot_importances("importances.png", {"alpha": 0.8, "epochs": 0.2}).name
        'importances.png'
    """
    importance_figure(importances, title).savefig(path, format="png", dpi=DPI)
    return Path(path)


def importance_figure(importances: Mapping[str, float], title: str = "") -> Figure:
    """A bar per setting, the largest at the top.

    Args:
        importances: setting to its share.
        title: heading.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 1.4 + 0.4 * len(importances)), layout="constrained")
    axis = figure.subplots()
    names = sorted(importances, key=lambda name: importances[name])
    bars = axis.barh(names, [importances[name] for name in names])
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.set_xlim(0, 1.1 * max([*importances.values(), 1e-12]))
    axis.set_xlabel("share of what separates the best trials from the others (PED-ANOVA)")
    figure.suptitle(title)
    return figure
