"""GORACS' cost matrix: scaled distances minus weighted gradient norms, as a table if it fits, else by blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from recbole_llm.coreset.goracs.transport import marginal_costs
from recbole_llm.errors import InputError

_BLOCK_ELEMENTS = 2**21  # of one block of distances: 8 MB in float32
_DOUBLE_ELEMENTS = 2**22  # up to which a table is kept in float64
_LARGEST = 1e36  # number of a vector, whose distances float32 still holds
_CANCELLED = 1e-6  # squared distances below this share of the squared lengths are computed directly


def table_bytes(n_train: int, n_valid: int) -> int:
    """Memory of a table of costs."""
    elements = n_train * n_valid
    return elements * (8 if elements <= _DOUBLE_ELEMENTS else 4)


def rows_that_fit(n_valid: int, n_bytes: float) -> int:
    """Training rows whose table of costs takes at most so much memory."""
    n_rows = int(n_bytes // (4 * n_valid))
    return n_rows if table_bytes(n_rows, n_valid) <= n_bytes else int(n_bytes // (8 * n_valid))


class Distances:
    """Euclidean distances (not squared) between training and validation rows.

    Single rows are exact to rounding of float64, or of a float32 table; what goes over all rows is computed by blocks,
    in the table's type or, without a table, in float32. Where the vectors lie and their unit cost no digits: computed
    with are, in float64 at first, the vectors less their centre, divided by a power of two.

    Args:
        train: float ``[n_train, d]``.
        valid: float ``[n_valid, d]``.
        dense: whether to keep a table.

    Raises:
        InputError: a number is too large.
    """

    def __init__(self, train: np.ndarray, valid: np.ndarray, dense: bool) -> None:
        self.train, self.valid = train, valid
        self.shape = len(train), len(valid)
        self.factor = 1.0
        largest = max(_largest(train), _largest(valid))
        if largest > _LARGEST:
            raise InputError(
                f"GORACS: the vectors hold numbers up to {largest:.1e}; scale them below {_LARGEST:g}", kind="numeric"
            )
        self._unit = math.ldexp(1.0, math.frexp(largest)[1]) if largest else 1.0
        self._centre = valid.mean(axis=0, dtype=np.float64)
        self._targets = self._points(valid)
        self._squares = np.einsum("nd,nd->n", self._targets, self._targets)
        self._single = self._targets.astype(np.float32), self._squares.astype(np.float32)
        self.table: np.ndarray | None = None
        if dense:
            dtype = np.float64 if len(train) * len(valid) <= _DOUBLE_ELEMENTS else np.float32
            self.table = np.empty(self.shape, dtype=dtype)
            for block in self._slices(max(len(valid), train.shape[1])):
                self.table[block] = self._exact(train[block])

    def scale_by_largest(self) -> float:
        """Divide by the largest distance, where it is not 0; gives that distance."""
        largest = max(float(block.max()) for _, block in self.blocks())
        if largest > 0:
            self.factor = 1 / largest
            if self.table is not None:
                self.table *= self.factor
        return largest

    @property
    def rounding(self) -> float:
        """Size of the rounding errors of what is computed in float32, apart from rows that nearly coincide."""
        return 1e-6 * self.factor * self._unit * float(np.sqrt(self._squares.max()))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """float64 ``[k, n_valid]``."""
        if self.table is not None:
            known: np.ndarray = self.table[indices].astype(np.float64)
            return known
        return self._exact(self.train[indices])

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows in turn: their slice, and distances that may be written into."""
        for block in self._slices(max(self.shape[1], self.train.shape[1] if self.table is None else 1)):
            yield block, self.table[block].copy() if self.table is not None else self._rough(self.train[block])

    def some(self, indices: np.ndarray) -> np.ndarray:
        """``[k, n_valid]`` of the kind that :meth:`blocks` gives."""
        return self.table[indices] if self.table is not None else self._rough(self.train[indices])

    def part(self, rows: np.ndarray, columns: np.ndarray | None = None, dense: bool = True) -> Distances:
        """The distances between some of the rows, scaled as these are."""
        valid = self.valid if columns is None else self.valid[columns]
        part = Distances(self.train[rows], valid, dense)
        part.factor = self.factor
        if part.table is not None:
            part.table *= part.factor
        return part

    def _slices(self, width: int) -> Iterator[slice]:
        step = max(1, _BLOCK_ELEMENTS // width)
        return (slice(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step))

    def _points(self, rows: np.ndarray) -> np.ndarray:
        """float64 ``[k, d]``: what is computed with."""
        points: np.ndarray = rows - self._centre
        points /= self._unit
        return points

    def _exact(self, rows: np.ndarray) -> np.ndarray:
        """float64, scaled; by a product of matrices, and directly where that would lose too many digits."""
        points = self._points(rows)
        sizes = np.einsum("nd,nd->n", points, points)[:, None] + self._squares
        squared = points @ self._targets.T
        squared *= -2
        squared += sizes
        near = np.nonzero(squared <= _CANCELLED * sizes)
        step = max(1, _BLOCK_ELEMENTS // points.shape[1])
        for start in range(0, len(near[0]), step):
            pairs = near[0][start : start + step], near[1][start : start + step]
            difference = points[pairs[0]] - self._targets[pairs[1]]
            squared[pairs] = np.einsum("nd,nd->n", difference, difference)
        distances: np.ndarray = np.sqrt(squared, out=squared)
        distances *= self.factor * self._unit
        return distances

    def _rough(self, rows: np.ndarray) -> np.ndarray:
        """float32, scaled."""
        targets, squares = self._single
        points = self._points(rows).astype(np.float32)
        table = points @ targets.T
        table *= -2
        table += squares
        table += np.einsum("nd,nd->n", points, points)[:, None]
        np.sqrt(np.maximum(table, 0, out=table), out=table)
        table *= np.float32(self.factor * self._unit)
        return table


def _largest(values: np.ndarray) -> float:
    """Largest absolute number, without a copy."""
    return max(float(values.max()), -float(values.min()))


class Costs:
    """C = D - lambda g: because every selected row carries the same mass, its transport is the whole objective.

    Args:
        distances: ``[n_train, n_valid]``.
        offsets: float64 ``[n_train]``, lambda times the gradient norms.
    """

    def __init__(self, distances: Distances, offsets: np.ndarray) -> None:
        self.distances, self.offsets = distances, offsets
        self.shape = distances.shape

    @property
    def noise(self) -> float:
        """Largest difference of two evaluations of one cost; 0 where they come from a table."""
        return 0.0 if self.distances.table is not None else self.distances.rounding

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """float64 ``[k, n_valid]``: what is solved with."""
        found: np.ndarray = self.distances.rows(indices) - self.offsets[indices, None]
        return found

    def some(self, indices: np.ndarray) -> np.ndarray:
        """``[k, n_valid]``, of the precision of :meth:`blocks`."""
        distances = self.distances.some(indices)
        found: np.ndarray = distances - self.offsets[indices, None].astype(distances.dtype)
        return found

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows in turn: their slice, and costs that may be written into."""
        for block, values in self.distances.blocks():
            values -= self.offsets[block, None].astype(values.dtype)
            yield block, values

    def part(self, rows: np.ndarray, columns: np.ndarray | None = None, dense: bool = True) -> Costs:
        """The costs of some of the rows."""
        return Costs(self.distances.part(rows, columns, dense), self.offsets[rows])


def outer_scores(costs: Costs, nearest: np.ndarray, n_members: int) -> np.ndarray:
    """F(o; f) of every row, with the column potentials of the whole selection; float64 ``[n_train]``."""
    scores = np.empty(costs.shape[0])
    for block, values in costs.blocks():
        values -= nearest.astype(values.dtype)
        scores[block] = marginal_costs(values, n_members)
    return scores
