"""Rows for the tests of GORACS."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist


class Rows(NamedTuple):
    train: np.ndarray
    valid: np.ndarray
    norms: np.ndarray

    def distances(self):
        table = cdist(self.train, self.valid)
        return table / table.max()

    def costs(self, weight):
        return self.distances() - weight * (self.norms / self.norms.max())[:, None]


def closed_form():
    """12 training and 5 validation rows without random numbers."""
    i, j, k = np.arange(12)[:, None], np.arange(5)[:, None], np.arange(3)
    train, valid = np.sin(1 + 1.7 * i + 0.9 * k**2), np.cos(2 + 1.3 * j + 0.6 * k)
    return Rows(train, valid, 1 + 0.5 * np.sin(3 * np.arange(12) + 1))


def random_rows(seed, n=30, m=12, width=3):
    rng = np.random.default_rng(seed)
    return Rows(rng.normal(size=(n, width)), rng.normal(size=(m, width)) + 0.3, rng.uniform(0.3, 1.0, n))
