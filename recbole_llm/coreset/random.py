"""A random sample of rows."""

from __future__ import annotations

import numpy as np

from recbole_llm.coreset.selector import Selector, highest


class RandomSelector(Selector):
    """A uniform draw without replacement: the rows with the largest random numbers, which are the scores.

    Under one seed a larger budget adds rows to those of a smaller one.

    Example:
        >>> draw = RandomSelector().select(np.arange(100), 0.1, seed=1)
        >>> more = RandomSelector().select(np.arange(100), 0.2, seed=1)
        >>> len(draw.ids), set(draw.ids) <= set(more.ids)
        (10, True)
    """

    name = "random"

    def _select(self, n_rows: int, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        keys = np.random.default_rng(seed).random(n_rows)
        return highest(keys, budget), keys
