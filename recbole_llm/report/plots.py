"""Plots of a run, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.report.projection import principal_plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

SIZE = (9.0, 6.0)  # inches
DPI = 120
Record = Mapping[str, Any]


def plot_curriculum(
    history: Sequence[Record],
    path: str | os.PathLike[str],
    title: str = "Curriculum",
    *,
    metric: str | None = None,
    initial_distance: float | None = None,
    best_epoch: int | None = None,
) -> Path:
    """Save :func:`curriculum_figure` as a PNG of ``SIZE`` times ``DPI`` pixels.

    Args:
        history: one record per epoch.
        path: the file; its folder must exist.
        title: heading of the figure.
        metric: name of the validation metric that is drawn.
        initial_distance: distance before the first epoch.
        best_epoch: the epoch whose weights were kept.

    Returns:
        The path.

    Example:
        >>> record = {"epoch": 1, "weight": 1.0, "distance": 0.5, "distilled_loss": 2.0, "valid": {"ndcg@10": 0.1}}
        >>> plot_curriculum([record], "curriculum.png", metric="ndcg@10").name
        'curriculum.png'
    """
    figure = curriculum_figure(history, title, metric=metric, initial_distance=initial_distance, best_epoch=best_epoch)
    figure.savefig(path, format="png", dpi=DPI)
    return Path(path)


def curriculum_figure(
    history: Sequence[Record],
    title: str = "Curriculum",
    *,
    metric: str | None = None,
    initial_distance: float | None = None,
    best_epoch: int | None = None,
) -> Figure:
    """What the curriculum did: weight of the distilled answers, distance, losses and validation metric by epoch.

    A value that is missing or None (a skipped pass, an epoch without validation) is a gap in its line.

    Args:
        history: one record per epoch with ``epoch`` (from 1), ``weight`` (lambda during the epoch), ``distance`` (after
            it), ``real_loss``, ``distilled_loss`` and ``valid`` (metric name to value).
        title: heading of the figure.
        metric: name of the validation metric that is drawn; by default the first that was recorded.
        initial_distance: distance of the untuned LLM, drawn at epoch 0.
        best_epoch: the epoch whose weights were kept; by default the first with the highest ``metric``.

    Returns:
        A figure with four axes. Lines carry their names as labels.

    Example:
        >>> record = {"epoch": 1, "weight": 1.0, "distance": 0.5, "distilled_loss": 2.0, "valid": {"ndcg@10": 0.1}}
        >>> len(curriculum_figure([record], metric="ndcg@10").axes)
        4
    """
    from matplotlib.figure import Figure

    epochs = [record["epoch"] for record in history]
    metric = metric.lower() if metric else _first_metric(history)
    scores = [(record.get("valid") or {}).get(metric) for record in history]
    best = _best_epoch(epochs, scores) if best_epoch is None else best_epoch

    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle(title, parse_math=False)
    ((weights, distances), (losses, metrics)) = figure.subplots(2, 2, sharex=True)
    _panel(weights, "λ, weight of the distilled answers", epochs, {"λ": _column(history, "weight")})
    weights.set_ylim(-0.05, 1.05)
    distance = [initial_distance, *_column(history, "distance")]
    _panel(distances, "distance of answers and titles", [0, *epochs], {"distance": distance})
    both = {"distilled answers": _column(history, "distilled_loss"), "true titles": _column(history, "real_loss")}
    _panel(losses, "training loss", epochs, both)
    _panel(metrics, f"validation {metric}", epochs, {metric: scores})
    if best is not None:
        for axes in figure.axes:
            axes.axvline(best, color="0.5", linestyle="--", linewidth=1, zorder=0, label="best epoch")
        metrics.legend(handles=metrics.lines[-1:])
    return figure


def plot_gates(gates: ArrayLike, path: str | os.PathLike[str], title: str = "Gates") -> Path:
    """Save :func:`gate_figure` as a PNG of ``SIZE`` times ``DPI`` pixels.

    Args:
        gates: [rows, experts].
        path: the file; its folder must exist.
        title: heading of the figure.

    Returns:
        The path.

    Example:
        >>> plot_gates([[0.9, 0.1], [0.2, 0.8]], "gates.png").name
        'gates.png'
    """
    gate_figure(gates, title).savefig(path, format="png", dpi=DPI)
    return Path(path)


def gate_figure(gates: ArrayLike, title: str = "Gates") -> Figure:
    """The gates of instance-wise LoRA as points of a plane: rows that use the experts alike stand together.

    Args:
        gates: [rows, experts], each row of sum 1.
        title: heading of the figure.

    Returns:
        A figure with the rows along their first two principal components, coloured by their strongest expert, and the
        mean gate of each expert.

    Example:
        >>> len(gate_figure([[0.9, 0.1], [0.2, 0.8]]).axes)
        2
    """
    from matplotlib.figure import Figure

    gates = np.atleast_2d(np.asarray(gates, dtype=np.float64))
    points, shares = principal_plane(gates)
    strongest, colours = gates.argmax(axis=1), [f"C{expert}" for expert in range(gates.shape[1])]
    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle(title, parse_math=False)
    plane, bars = figure.subplots(1, 2, width_ratios=(3, 1))
    for expert in np.unique(strongest):
        own = points[strongest == expert]
        label = f"expert {expert + 1}: {len(own)} rows"
        plane.scatter(own[:, 0], own[:, 1], s=12, alpha=0.6, color=colours[expert], label=label)
    plane.set_xlabel(f"first component, {shares[0]:.0%} of the variance")
    plane.set_ylabel(f"second component, {shares[1]:.0%} of the variance")
    plane.set_title("rows by their strongest expert", fontsize="medium")
    plane.legend()
    bars.bar(range(1, gates.shape[1] + 1), gates.mean(axis=0), color=colours)
    bars.axhline(1 / gates.shape[1], color="0.5", linestyle="--", linewidth=1, label="plain LoRA")
    bars.set_xticks(range(1, gates.shape[1] + 1))
    bars.set_ylim(0, 1)
    bars.set_xlabel("expert")
    bars.set_title("mean gate", fontsize="medium")
    bars.legend()
    return figure


def _panel(axes: Axes, title: str, epochs: Sequence[int], lines: Mapping[str, Sequence[float | None]]) -> None:
    """Draw lines over epochs; markers show values between two gaps, which no line reaches."""
    from matplotlib.ticker import MaxNLocator

    for (name, values), marker in zip(lines.items(), "os", strict=False):
        axes.plot(epochs, [float("nan") if value is None else value for value in values], marker=marker, label=name)
    axes.set_title(title, fontsize="medium", parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.3, max([1, *epochs]) + 0.3)
    axes.grid(alpha=0.3)
    if (cell := axes.get_subplotspec()) is not None and cell.is_last_row():
        axes.set_xlabel("epoch")
    if all(value is None for values in lines.values() for value in values):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="0.5")
    elif len(lines) > 1:
        axes.legend()


def _column(history: Sequence[Record], name: str) -> list[float | None]:
    return [record.get(name) for record in history]


def _first_metric(history: Sequence[Record]) -> str:
    return next((name for record in history for name in record.get("valid") or {}), "metric")


def _best_epoch(epochs: Sequence[int], scores: Sequence[float | None]) -> int | None:
    """The first epoch with the highest score, None if there is no score."""
    validated = [(score, epoch) for epoch, score in zip(epochs, scores, strict=True) if score is not None]
    return max(validated, key=lambda pair: pair[0])[1] if validated else None
