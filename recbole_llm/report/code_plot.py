"""The plot of a catalogue's codes: their tree, and the use of each level."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recbole_llm.report.plots import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (11.0, 5.5)  # inches
COLOURS = "tab20"
MOST_LINES = 400  # nodes of a level, above which no lines are drawn between them


def plot_codes(codes: np.ndarray, n_codes: int, path: str | os.PathLike[str], title: str = "Codes") -> Path:
    """Save :func:`code_figure` as a PNG of ``SIZE`` times ``DPI`` pixels. Returns: the path.

    Example:
        >>> plot_codes(np.array([[0, 1], [0, 0], [2, 1]]), 4, "codes.png").name
        'codes.png'
    """
    code_figure(codes, n_codes, title).savefig(path, format="png", dpi=DPI)
    return Path(path)


def code_figure(codes: np.ndarray, n_codes: int, title: str = "Codes") -> Figure:
    """The tree of codes and their use.

    The tree is drawn from the top: a row is a level, a block a beginning of codes, as wide as it has items; its colour
    says its code, modulo twenty. Below it are the blocks that continue it.

    Args:
        codes: int64 [items, levels], without counters.
        n_codes: codewords of a level.
        title: heading of the figure.

    Returns:
        A figure with two axes.

    Example:
        >>> len(code_figure(np.array([[0, 1], [0, 0], [2, 1]]), n_codes=4).axes)
        2
    """
    from matplotlib.figure import Figure

    table = np.asarray(codes)[np.lexsort(np.asarray(codes).T[::-1])]
    n_items, levels = table.shape
    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle(title, parse_math=False)
    tree, bars = figure.subplots(1, 2, width_ratios=(3, 1))
    image = (table.T % 20).astype(float)
    tree.imshow(image, aspect="auto", cmap=COLOURS, vmin=-0.5, vmax=19.5, interpolation="nearest")
    begins = np.zeros(max(n_items - 1, 0), dtype=bool)
    for level in range(levels):
        begins |= table[1:, level] != table[:-1, level]
        edges = np.flatnonzero(begins) + 0.5
        if len(edges) <= MOST_LINES:
            tree.vlines(edges, level - 0.5, level + 0.5, color="white", linewidth=0.6)
    tree.hlines(np.arange(levels - 1) + 0.5, -0.5, n_items - 0.5, color="white", linewidth=2)
    tree.set_yticks(range(levels), [f"level {level + 1}" for level in range(levels)])
    tree.set_xlabel("items, by their codes")
    nodes = [len(np.unique(table[:, : level + 1], axis=0)) for level in range(levels)]
    tree.set_title("beginnings of codes: " + ", ".join(f"{n:,}" for n in nodes), fontsize="medium")
    used = [len(np.unique(column)) for column in table.T]
    bars.bar(range(1, levels + 1), used, color="C0")
    bars.axhline(n_codes, color="0.5", linestyle="--", linewidth=1, label=f"codewords: {n_codes}")
    bars.set_xticks(range(1, levels + 1))
    bars.set_xlabel("level")
    bars.set_title("codes that an item has", fontsize="medium")
    bars.legend()
    return figure
