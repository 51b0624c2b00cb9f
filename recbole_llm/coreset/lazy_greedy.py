"""The minimum of many values of which only lower bounds are known, with few evaluations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_FIRST = 16  # rows evaluated at once, doubled until the smallest is found


def lazy_argmin(bounds: np.ndarray, evaluate: Callable[[np.ndarray], np.ndarray]) -> int:
    """Index of the smallest value; of equal ones the first.

    In greedy selection the values of the last step bound those of the next (Minoux 1978): most stay untouched.

    Args:
        bounds: float64 ``[n]``, at most the values; what is evaluated is written into it.
        evaluate: ``evaluate(indices [k]) -> values [k]``.
    """
    known = np.zeros(len(bounds), dtype=bool)
    size = _FIRST
    while True:
        best = int(bounds.argmin())
        if known[best]:
            return best
        rows = np.argpartition(bounds, size - 1)[:size] if size < len(bounds) else np.arange(len(bounds))
        rows = np.union1d(rows[~known[rows] & np.isfinite(bounds[rows])], [best])
        bounds[rows] = evaluate(rows)
        known[rows] = True
        size *= 2
