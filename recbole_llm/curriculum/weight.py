"""The two formulas of SOFT's curriculum (arXiv 2505.20771)."""

from __future__ import annotations

import logging
import math

import numpy as np

from recbole_llm.arrays import Array, to_numpy
from recbole_llm.errors import InputError

NO_DISTANCE = 1e-12  # an initial distance this small leaves nothing to approach
log = logging.getLogger(__name__)


def adaptive_weight(distance: float, initial_distance: float, alpha: float, epoch: int | None = None) -> float:
    """Weight of the distilled answers in the next epoch: ``min(exp(alpha * (d_t / d_0 - 1)), 1)``.

    It is 1 before any training and falls as the model's answers approach the true titles. The exponent is clamped to at
    most 0 first, to avoid overflow.

    Args:
        distance: d_t, mean distance after t completed epochs, >= 0.
        initial_distance: d_0, of the untuned model, >= 0. If it is practically 0, the weight is 0 from the first epoch
            on, with a warning.
        alpha: how fast the weight falls, >= 0; 0 keeps it at 1.
        epoch: t, completed epochs; 0 means 1 whatever the distances are.

    Returns:
        Lambda in [exp(-alpha), 1]; 0 in the case above.

    Raises:
        InputError: alpha is negative or not finite; or a distance is negative or not finite, as after a training that
            diverged.

    Example:
        >>> [round(adaptive_weight(distance, 2.0, alpha=5.0), 3) for distance in (2.0, 1.8, 1.0)]
        [1.0, 0.607, 0.082]
    """
    if not (math.isfinite(alpha) and alpha >= 0):
        raise InputError(f"alpha: {alpha!r} is not allowed; give a finite number >= 0")
    for name, value in (("distance", distance), ("initial distance", initial_distance)):
        if not (math.isfinite(value) and value >= 0):
            when = "" if epoch is None else f" after epoch {epoch}"
            raise InputError(
                f"curriculum: the {name} of generated and true titles is {value}{when}; check the LLM", kind="numeric"
            )
    if epoch == 0 or alpha == 0:
        return 1.0
    if initial_distance <= NO_DISTANCE:
        log.warning("The untuned LLM already answers with the true titles: distilled answers get weight 0")
        return 0.0
    return math.exp(min(alpha * (distance / initial_distance - 1), 0.0))


def mean_distance(predicted: Array, target: Array) -> float:
    """Mean L2 distance of generated and true titles' embeddings, in float64.

    Args:
        predicted: array or tensor [n, d], one embedding per generated text.
        target: [n, d], of the true titles, in the same order.

    Returns:
        The mean of n distances.

    Raises:
        ValueError: shapes differ, or there are no rows.

    Example:
        >>> mean_distance([[0.0, 0.0], [1.0, 1.0]], [[3.0, 4.0], [1.0, 1.0]])
        2.5
    """
    predicted, target = (to_numpy(vectors).astype(np.float64) for vectors in (predicted, target))
    if predicted.shape != target.shape or predicted.ndim != 2 or not len(predicted):
        raise ValueError(f"two arrays [n, d] with n >= 1 are needed, not {predicted.shape} and {target.shape}")
    return float(np.linalg.norm(predicted - target, axis=1).mean())
