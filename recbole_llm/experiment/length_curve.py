"""Accuracy against the number of items or tokens shown, for models that choose how much of a history to show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.report.length_plot import plot_lengths

if TYPE_CHECKING:
    from recbole_llm.evaluation import Protocol
    from recbole_llm.experiment.run_folder import RunFolder

FILE, PLOT = "lengths.json", "lengths.png"


def write_length_curve(
    folder: RunFolder, trainer: Any, protocol: Protocol, loader: Any, chooser: Any
) -> list[dict[str, Any]]:
    """Evaluate the rows at every fixed length and at the chosen ones, and write what each costs.

    Args:
        folder: folder of the run; it gets ``lengths.json`` and ``lengths.png``.
        trainer: trainer of the trained model.
        protocol: how rows are evaluated.
        loader: loader of the rows.
        chooser: what chooses the model's lengths, with ``lengths``, ``fixed_length`` and ``shown_lengths``; where it
            has ``prompt_tokens`` too, tokens are counted.

    Returns:
        A point per length (``length``; None for the actor's choice): ``metric``, the metric's name, its ``value``, and
        ``shown``, how many items a row shows on average; ``tokens``, of a prompt on
        average.
    """
    trainer.model.eval()
    points: list[dict[str, Any]] = []
    rows, metric = loader.dataset.inter_feat.to(trainer.model.device), protocol.usual_metric
    try:
        for length in [None, *chooser.lengths]:
            chooser.fixed_length = length
            value = protocol.evaluate(trainer, loader).metrics[metric]
            shown = float(chooser.shown_lengths(rows).float().mean())
            tokens = {"tokens": chooser.prompt_tokens(rows)} if hasattr(chooser, "prompt_tokens") else {}
            points.append({"length": length, "metric": metric, "value": value, "shown": shown, **tokens})
    finally:
        chooser.fixed_length = None
    chosen = chooser.shown_lengths(rows).cpu().numpy()
    counts = {str(length): int(n) for length, n in zip(*np.unique(chosen, return_counts=True), strict=True)}
    folder.write(FILE, {"points": points, "chosen": counts})
    plot_lengths(folder.path / PLOT, points, title=f"{folder.path.name}: validation")
    return points
