"""LMDH: a bandit that learns how relevance and dispersion make the value of a list (arXiv 2012.13245).

The feedback on the item at position k of a list is ``theta . x + beta . z`` in expectation: x are the item's features,
z its distances to the items before it, summed. theta and beta are learnt by one ridge regression, kept in blocks, so
that dispersion features can be shared. The paper's algorithm could not be read: this is the algebra of a hybrid linear
bandit (Li et al. 2010) on its model, equal to the joint ridge regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_llm.arrays import like, to_numpy
from recbole_llm.rerank.lists import best_left

Floats = NDArray[np.float64]


class ModularDispersionBandit:
    """Ridge regression on relevance and dispersion features, with upper confidence bounds and greedy lists.

    Args:
        n_relevance: d, features x of an item.
        n_dispersion: J, distances between items.
        ridge: weight of the penalty, > 0: how many observations it takes to leave the prior.
        prior: ``theta`` [d] and ``beta`` [J] that the weights are shrunk to; zeros where not given.

    Raises:
        ValueError: the ridge is not positive, the prior holds something else, or shapes do not match.

    Example:
        >>> bandit = ModularDispersionBandit(1, 1)
        >>> bandit.update([[1.0], [1.0], [0.0]], [[0.0], [1.0], [2.0]], [1.0, 0.0, 1.0])
        >>> [weights.round(4).tolist() for weights in bandit.weights()]  # 4/17 and 5/17
        [[0.2353], [0.2941]]
    """

    def __init__(
        self, n_relevance: int, n_dispersion: int, ridge: float = 1.0, prior: Mapping[str, Any] | None = None
    ) -> None:
        if not ridge > 0:
            raise ValueError(f"the ridge must be > 0, not {ridge}")
        known = prior or {}
        if strange := sorted(set(known) - {"theta", "beta"}):
            raise ValueError(f"the prior has theta and beta, not {', '.join(map(str, strange))}")
        self._form: Any = known.get("theta")  # tensors answer tensors
        self._theta0 = _vector(known.get("theta"), n_relevance, "theta")
        self._beta0 = _vector(known.get("beta"), n_dispersion, "beta")
        self._relevance = ridge * np.eye(n_relevance)  # A_x
        self._cross = np.zeros((n_relevance, n_dispersion))  # B
        self._relevance_sum = np.zeros(n_relevance)  # b_x
        self._dispersion = ridge * np.eye(n_dispersion)  # A_z, before the part that x explains is taken out
        self._dispersion_sum = np.zeros(n_dispersion)  # b_z, likewise

    def update(self, x: Any, z: Any, y: Any) -> None:
        """Learns from the feedback on shown items.

        Args:
            x: [n, d], features of the items.
            z: [n, J], their summed distances to the items before them, as they were when the item was placed.
            y: [n], feedback: clicks or ratings.

        Raises:
            ValueError: shapes do not match, or a value is not finite; nothing is learnt then.
        """
        form = x[:0]
        x, z, y = self._features(x, z, y)
        self._form = form
        y = y - x @ self._theta0 - z @ self._beta0
        self._relevance += x.T @ x
        self._cross += x.T @ z
        self._relevance_sum += x.T @ y
        self._dispersion += z.T @ z
        self._dispersion_sum += z.T @ y

    def weights(self) -> tuple[Any, Any]:
        """theta [d] and beta [J] so far, arrays or tensors as the feedback was; the prior before any."""
        theta, beta = self._weights()
        return like(theta, self._form), like(beta, self._form)

    def _weights(self) -> tuple[Floats, Floats]:
        solved = np.linalg.solve(self._relevance, np.column_stack([self._cross, self._relevance_sum]))
        cross, relevance = solved[:, :-1], solved[:, -1]
        rest = self._dispersion - self._cross.T @ cross
        beta = np.linalg.solve(rest, self._dispersion_sum - self._cross.T @ relevance)
        return self._theta0 + relevance - cross @ beta, self._beta0 + beta

    def width(self, x: Any, z: Any) -> Any:
        """How uncertain the expected feedback is: the standard deviation of the joint ridge model at noise 1.

        Args:
            x: [n, d], features of items.
            z: [n, J], their summed distances to a list.

        Returns:
            [n]: w with ``w^2 = x . u + q . (A_z - B^T A_x^-1 B)^-1 q``, ``u = A_x^-1 x``, ``q = z - B^T u``.
        """
        features, sums = self._features(x, z)
        return like(self._widths(features, sums), x)

    def recommend(
        self, x: Any, distances: Any, length: int, alpha: float = 0.0, half_relevance: bool = False
    ) -> tuple[Any, Any]:
        """A greedy list by ``theta . x + beta . z + alpha * width``, z growing with the list; ties to the lower index.

        Args:
            x: [n, d], features of the candidates.
            distances: [J, n, n], symmetric.
            length: items of the list; at most n are returned.
            alpha: weight of the width; 0 exploits.
            half_relevance: choose by half of ``theta . x`` (the greedy guarantee of ``greedy_list``).

        Returns:
            int64 [length], the items in order; float64 [length], the score by which each was chosen.

        Raises:
            ValueError: shapes do not match.
        """
        features, tables = to_numpy(x).astype(np.float64), to_numpy(distances).astype(np.float64)
        n, j = len(features), len(self._beta0)
        if features.shape != (n, len(self._theta0)) or tables.shape != (j, n, n):
            raise ValueError(
                f"x [n, {len(self._theta0)}] and distances [{j}, n, n] do not match: {features.shape}, {tables.shape}"
            )
        theta, beta = self._weights()
        relevance = (0.5 if half_relevance else 1.0) * (features @ theta)
        sums, left = np.zeros((n, j)), np.ones(n, dtype=bool)
        order: list[int] = []
        scores: list[float] = []
        for _ in range(min(length, n)):
            score = relevance + sums @ beta
            if alpha:
                score = score + alpha * self._widths(features, sums)
            best = best_left(score, left)
            order.append(best)
            scores.append(float(score[best]))
            left[best] = False
            sums += tables[:, best].T
        return like(np.array(order, dtype=np.int64), x), like(np.array(scores, dtype=np.float64), x)

    def _widths(self, x: Floats, z: Floats) -> Floats:
        u = np.linalg.solve(self._relevance, x.T)
        q = z.T - self._cross.T @ u
        rest = self._dispersion - self._cross.T @ np.linalg.solve(self._relevance, self._cross)
        squared = (x.T * u).sum(axis=0) + (q * np.linalg.solve(rest, q)).sum(axis=0)
        widths: Floats = np.sqrt(np.maximum(squared, 0.0))
        return widths

    def _features(self, x: Any, z: Any, *others: Any) -> tuple[Floats, ...]:
        arrays = tuple(to_numpy(values).astype(np.float64) for values in (x, z, *others))
        d, j = len(self._theta0), len(self._beta0)
        if (
            arrays[0].shape != (n := len(arrays[0]), d)
            or arrays[1].shape != (n, j)
            or any(a.shape != (n,) for a in arrays[2:])
        ):
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise ValueError(f"x [n, {d}], z [n, {j}] and y [n] do not match: {shapes}")
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("x, z or y hold NaN or infinity")
        return arrays


def _vector(values: Any, length: int, name: str) -> Floats:
    vector = np.zeros(length) if values is None else to_numpy(values).astype(np.float64)
    if vector.shape != (length,):
        raise ValueError(f"prior {name} [{length}] is needed, not {vector.shape}")
    return vector
