"""Exact order of distances at the cost of a matrix product.

Every distance that decides an order is the *direct* one, ``sqrt(sum((query - row)^2))`` in float64. The fast matrix
form ``|q|^2 + |x|^2 - 2 q.x`` loses digits, so it settles only comparisons that lie beyond its rounding error; the rest
are computed directly. Identical rows therefore tie exactly, and an exact match is at distance 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from recbole_llm.grounding.members import Members

_BLOCK_ELEMENTS = 2**22  # of one temporary array: 16 MB in float32, 32 MB in float64
_BLOCK_POINTS = 2**14  # that one block of queries is compared with at a time
_GATHER_ELEMENTS = 2**18  # of the gathered rows of direct distances: 2 MB, which stay in the cache
_PANEL = 512  # columns multiplied at once in float32
_SINGLE, _DOUBLE = 2.0**-24, 2.0**-53  # unit roundoff
_TINY, _HUGE = 2.0**-126, 2.0**123  # float32 underflows below, and may overflow above


class Points:
    """Rows of an embedding table as points that queries are compared with.

    The mean of the points is subtracted from both sides of the matrix form, which then errs less.

    Args:
        embeddings: finite float32 or float64 ``[items, d]``. Not copied: leave it unchanged.
        rows: int64 ``[points]``, the row of the table that is each point.
        keep: keep a centred float32 copy of the rows; otherwise they are centred block by block whenever they are read.
    """

    def __init__(self, embeddings: np.ndarray, rows: np.ndarray, keep: bool = True) -> None:
        self.embeddings, self.rows = embeddings, rows
        self.dimension = embeddings.shape[1]
        self.centre = np.zeros(self.dimension)
        for block in blocks(len(rows), self.dimension):
            self.centre += embeddings[rows[block]].sum(axis=0, dtype=np.float64)
        # In the type of the embeddings, so that subtracting it in that type rounds once.
        self.centre = (self.centre / len(rows)).astype(embeddings.dtype)
        self._kept = np.empty((len(rows), self.dimension), dtype=np.float32) if keep else None
        squares = np.empty(len(rows))
        for block in blocks(len(rows), self.dimension):
            centred = self._centre(block)
            np.einsum("nd,nd->n", centred, centred, dtype=np.float64, out=squares[block])
            if self._kept is not None:
                self._kept[block] = centred
        self._radius = float(np.sqrt(squares.max()))
        with np.errstate(over="ignore"):
            self._half_square = (0.5 * squares).astype(np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def _centre(self, block: slice) -> np.ndarray:
        with np.errstate(over="ignore"):
            centred: np.ndarray = self.embeddings[self.rows[block]]
            centred -= self.centre
            return centred.astype(np.float32, copy=False)

    def centred(self, block: slice) -> np.ndarray:
        """float32 ``[points, d]``: some of the points minus the mean of all."""
        return self._centre(block) if self._kept is None else self._kept[block]

    @property
    def _width(self) -> int:
        """Points that a block of queries meets at a time; fewer, and more queries, where points are not kept."""
        return _BLOCK_POINTS if self.kept else max(1, _BLOCK_POINTS // 4)

    @property
    def kept(self) -> bool:
        """Whether a centred copy is kept."""
        return self._kept is not None

    def centre_queries(self, queries: np.ndarray) -> np.ndarray:
        """float64 ``[queries, d]``: queries minus the mean of the points."""
        centred: np.ndarray = queries.astype(np.float64) - self.centre
        return centred

    def half_scores(self, centred: np.ndarray, block: slice) -> np.ndarray:
        """``q.x - |x|^2/2``, larger is nearer; summed panel by panel, which tightens the error bound.

        Args:
            centred: float32 ``[queries, d]``.
            block: block of the points.

        Returns:
            float32 ``[queries, block]``; may overflow.
        """
        # By torch, whose matrix product is several times as fast as NumPy's where OpenBLAS does not know the CPU.
        left, right = torch.from_numpy(centred), torch.from_numpy(self.centred(block))
        scores = torch.from_numpy(-self._half_square[block]).expand(len(left), -1).clone()
        for start in range(0, self.dimension, _PANEL):
            panel = slice(start, start + _PANEL)
            scores += left[:, panel] @ right[:, panel].T
        result: np.ndarray = scores.numpy()
        return result

    def direct(self, queries: np.ndarray, query_index: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Direct distances ``[pairs]`` of ``queries[query_index]`` from ``embeddings[rows]``: the ones that count."""
        result = np.empty(len(rows))
        for block in blocks(len(rows), self.dimension, _GATHER_ELEMENTS):
            difference = queries[query_index[block]].astype(np.float64)
            difference -= self.embeddings[rows[block]]
            difference *= difference
            difference.sum(axis=1, out=result[block])
        return np.sqrt(result, out=result)

    def direct_table(self, queries: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Direct distances ``[queries, k]`` of ``points[queries, k]``; +inf where a point is -1."""
        result = np.full(points.shape, np.inf)
        query_index, columns = np.nonzero(points >= 0)
        result[query_index, columns] = self.direct(queries, query_index, self.rows[points[query_index, columns]])
        return result

    def count_before(
        self, queries: np.ndarray, target_rows: np.ndarray, targets: np.ndarray, members: Members
    ) -> np.ndarray:
        """How many items stand before each query's target: nearer, or as near and of a lower id.

        With centred ``q`` and ``x`` the half squared distance is ``|q|^2/2 - s``, ``s = q.x - |x|^2/2``; ``s`` decides
        against the target's own ``s`` unless both lie within the error bound. Memory: one block of queries x points.

        Args:
            queries: ``[queries, d]``.
            target_rows: int64 ``[queries]``, the row of the table that stands for each target.
            targets: int64 ``[queries]``, the ids that decide among equal distances.
            members: the items at each point.

        Returns:
            int64 ``[queries]``.
        """
        ranks = np.zeros(len(queries), dtype=np.int64)
        for block in blocks(len(queries), min(len(self), self._width)):
            own = queries[block]
            centred = self.centre_queries(own)
            target = self.embeddings[target_rows[block]].astype(np.float64) - self.centre
            of_target = (centred * target).sum(axis=1) - 0.5 * (target * target).sum(axis=1)
            bound = self._single_bound(np.linalg.norm(centred, axis=1))
            with np.errstate(all="ignore"):
                limits = (of_target - bound).astype(np.float32), (of_target + bound).astype(np.float32)
                single = centred.astype(np.float32)
            distances = self.direct(own, np.arange(len(own)), target_rows[block])
            for points in blocks(len(self), 1, self._width):
                before, query_index, columns = self._settle(single, points, *limits, members.extra)
                ranks[block] += before
                other = self.direct(own, query_index, self.rows[columns])
                nearer, equal = other < distances[query_index], other == distances[query_index]
                counts = np.where(nearer, members.extra[columns] + 1, 0)
                counts[equal] = members.below(columns[equal], targets[block][query_index[equal]])
                np.add.at(ranks[block], query_index, counts)
        return ranks

    def _settle(
        self, centred: np.ndarray, block: slice, low: np.ndarray, high: np.ndarray, extra: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts the items that are certainly nearer; and the pairs of query and point that are not settled."""
        with np.errstate(all="ignore"):  # what overflows is not finite, therefore not certain, therefore direct
            scores = self.half_scores(centred, block)
            closer = scores > high[:, None]
            certain = closer | (scores < low[:, None])
        query_index, columns = np.divmod(np.flatnonzero(~certain), closer.shape[1])
        shared = np.flatnonzero(extra[block])
        before = np.count_nonzero(closer, axis=1) + closer[:, shared] @ extra[block][shared]
        return before, query_index, columns + block.start

    def _single_bound(self, norms: np.ndarray) -> np.ndarray:
        """Error bound ``[queries]`` of the float32 matrix form, for centred query norms ``[queries]``.

        The standard bound of an inner product, (additions in a row) ``u |q||x|``, with slack for the rounding of the
        inputs, of ``|x|^2/2`` and of the thresholds; then underflow, and the rounding of the direct distance itself.
        """
        size = norms * self._radius + self._radius**2
        additions = min(self.dimension, _PANEL) + self.dimension // _PANEL + 8
        bound = 1.01 * additions * _SINGLE * size + (self.dimension + 8) * _TINY
        bound += (self.dimension + 8) * 2 * _DOUBLE * (norms + self._radius) ** 2
        return np.where(size < _HUGE, bound, np.inf)

    def search_error(self, centred: np.ndarray) -> np.ndarray:
        """Error bound ``[queries]`` of ``|q|^2 + |x|^2 - 2 q.x`` in float32; NaN where it may overflow."""
        size = (np.linalg.norm(centred, axis=1) + self._radius) ** 2
        return np.where(size < _HUGE, 1.01 * (self.dimension + 8) * (_SINGLE * size + 4 * _TINY), np.nan)

    def nearest_within(self, queries: np.ndarray, reach: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` nearest points of each query, equal distances in the order of the points, all of them looked at.

        Args:
            queries: ``[queries, d]``.
            reach: float64 ``[queries]``, direct distances within which at least ``k`` points are known to lie.
            k: how many.

        Returns:
            Direct distances float64 and points int64, both ``[queries, k]``.
        """
        distances, points = np.empty((len(queries), k)), np.empty((len(queries), k), dtype=np.int64)
        for block in blocks(len(queries), min(len(self), self._width)):
            own = queries[block]
            query_index, found = self._candidates(own, reach[block])
            direct = self.direct(own, query_index, self.rows[found])
            order = np.lexsort((found, direct, query_index))
            first = order[np.searchsorted(query_index[order], np.arange(len(own)))[:, None] + np.arange(k)]
            distances[block], points[block] = direct[first], found[first]
        return distances, points

    def _candidates(self, queries: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of query and point which may lie within reach."""
        centred = self.centre_queries(queries)
        norms = np.linalg.norm(centred, axis=1)
        with np.errstate(all="ignore"):  # what overflows is no reason to leave a point out
            low = (0.5 * (norms**2 - reach**2) - self._single_bound(norms)).astype(np.float32)[:, None]
            single = centred.astype(np.float32)
            parts = [
                (*np.nonzero(~(self.half_scores(single, points) < low)), points.start)
                for points in blocks(len(self), 1, self._width)
            ]
        query_index, columns = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
        starts = np.repeat([part[2] for part in parts], [len(part[0]) for part in parts])
        return query_index, columns + starts

    def table(self, queries: np.ndarray) -> np.ndarray:
        """Distances float64 ``[queries, points]`` whose order and ties are those of the direct distances.

        Values that could be confused with another, and small ones, are direct; the rest are the float64 matrix form.
        """
        result = np.empty((len(queries), len(self)))
        for block in blocks(len(queries), len(self)):
            result[block] = self._ordered(queries[block].astype(np.float64))
        return result

    def _ordered(self, queries: np.ndarray) -> np.ndarray:
        own = np.einsum("qd,qd->q", queries, queries)
        squared = np.empty((len(queries), len(self)))
        largest = 0.0
        for block in blocks(len(self), self.dimension):
            rows = self.embeddings[self.rows[block]].astype(np.float64)
            norms = np.einsum("nd,nd->n", rows, rows)
            squared[:, block] = own[:, None] + norms - 2.0 * (queries @ rows.T)
            largest = max(largest, float(norms.max()))
        error = 4 * (self.dimension + 8) * _DOUBLE * (np.sqrt(own) + np.sqrt(largest)) ** 2
        order = np.argsort(squared, axis=1)
        near = np.diff(np.take_along_axis(squared, order, axis=1), axis=1) <= 2 * error[:, None]
        close = np.zeros(squared.shape, dtype=bool)
        close[:, 1:] |= near
        close[:, :-1] |= near
        uncertain = squared <= 1e9 * error[:, None]  # a small difference of large numbers has few right digits
        np.put_along_axis(close, order, close.copy(), axis=1)
        query_index, columns = np.nonzero(uncertain | close)
        result: np.ndarray = np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared)
        result[query_index, columns] = self.direct(queries, query_index, self.rows[columns])
        return result


def blocks(length: int, width: int, elements: int | None = None) -> Iterator[slice]:
    """Slices over ``length`` rows of ``width`` elements each, so many elements at a time."""
    step = max(1, (_BLOCK_ELEMENTS if elements is None else elements) // max(1, width))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
