"""From a vector to items: exact distances, exact ranks and top-k lists over a catalogue of item embeddings.

Every distance that decides an order is the *direct* one, ``sqrt(sum((query - row)^2))`` in float64. The fast matrix
form ``|q|^2 + |x|^2 - 2 q.x`` loses digits, so it settles only comparisons that lie beyond its rounding error; the rest
are computed directly. Identical rows therefore tie exactly, an exact match is at distance 0, and ties go to the lower
id.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from recbole_llm.arrays import like
from recbole_llm.errors import InputError
from recbole_llm.grounding.checks import (
    checked_embeddings,
    checked_queries,
    checked_rankable,
    checked_representative,
    checked_targets,
)

logger = logging.getLogger(__name__)

_BLOCK_ELEMENTS = 2**22  # of one temporary array: 16 MB in float32, 32 MB in float64
_GATHER_ELEMENTS = 2**18  # of the gathered rows of direct distances: 2 MB, which stay in the cache
_PANEL = 512  # columns multiplied at once in float32
_SPARE_CANDIDATES = 16  # retrieved beyond k, so that rounding can rarely hide a true neighbour
_SINGLE, _DOUBLE = 2.0**-24, 2.0**-53  # unit roundoff
_TINY, _HUGE = 2.0**-126, 2.0**123  # float32 underflows below, and may overflow above


class ItemIndex:
    """The catalogue as points; queries are the embeddings of generated texts (BIGRec, section 3.2, arXiv 2308.08434).

    Args:
        embeddings: ``[items, d]``, array or tensor; row ``i`` belongs to item id ``i``. Not copied: leave it unchanged.
        rankable: bool ``[items]``, the items that compete for a rank; items without an embedding (zero rows) never do.
            By default every item but the padding id 0 that has an embedding and is its own representative.
        representative: int ``[items]``, the item whose embedding stands for the item: the lowest id that has the same
            title. By default the item itself.
        factory: faiss factory string. ``Flat`` is exact; others (``IVF64,Flat``, ``HNSW32``) make ``search``, and only
            it, approximate. Without faiss an exact torch search replaces them all.
        search_parameters: faiss parameters of an approximate index, such as ``nprobe=16`` or ``efSearch=64``.

    Raises:
        InputError: an embedding holds NaN or infinity, no item is rankable, or faiss refuses ``factory``.
        ValueError: shapes do not fit, or ``representative`` is no map onto representatives.
    """

    def __init__(
        self,
        embeddings: Any,
        rankable: Any = None,
        representative: Any = None,
        factory: str = "Flat",
        *,
        search_parameters: str = "",
    ) -> None:
        self._embeddings = checked_embeddings(embeddings)
        n_items, self.dimension = self._embeddings.shape
        self._representative = checked_representative(representative, n_items)
        self._rankable = checked_rankable(rankable, self._embeddings, self._representative)
        self._ids = np.flatnonzero(self._rankable)
        self._centre = np.zeros(self.dimension)
        self._centred = self._centre_rows()
        squares = np.einsum("nd,nd->n", self._centred, self._centred, dtype=np.float64)
        self._radius = float(np.sqrt(squares.max()))
        with np.errstate(over="ignore"):
            self._half_square = (0.5 * squares).astype(np.float32)
        self._faiss = _faiss_or_none()
        self._approximate = None
        if self._faiss is not None and factory != "Flat":
            self._approximate = self._build(factory, search_parameters)

    def __len__(self) -> int:
        """Number of rankable items."""
        return len(self._ids)

    @property
    def embeddings(self) -> np.ndarray:
        """``[items, d]``: the catalogue's rows as they were given; not a copy."""
        return self._embeddings

    @property
    def rankable(self) -> np.ndarray:
        """bool ``[items]``: the items that compete for a rank."""
        return self._rankable.copy()

    @property
    def exact(self) -> bool:
        """Whether ``search`` is exact; ``rank_of`` and ``distances`` always are."""
        return self._approximate is None

    def rank_of(self, queries: Any, targets: Any) -> Any:
        """Ranks one target per query, without sorting and with one block of queries x items in memory.

        The rank of target ``c``, replaced by its representative, is ``#{j: D_j < D_c} + #{j < c: D_j = D_c}`` over the
        rankable items ``j``.

        Args:
            queries: ``[queries, d]``.
            targets: int ``[queries]``, item ids.

        Returns:
            int64 ``[queries]``, 0-based ranks, of the type of ``queries``.

        Raises:
            ValueError: a target is no item or cannot be ranked.
        """
        points = checked_queries(queries, self.dimension)
        rows = checked_targets(targets, len(points), self._rankable, self._representative)
        ranks = np.empty(len(points), dtype=np.int64)
        for block in _blocks(len(points), len(self._ids)):
            ranks[block] = self._count_before(points[block], rows[block])
        return like(ranks, queries)

    def search(self, queries: Any, k: int) -> tuple[Any, Any]:
        """Finds the nearest items, nearest first, equal distances by lower id.

        Args:
            queries: ``[queries, d]``.
            k: number of items wanted; never more than the rankable ones are returned.

        Returns:
            ``(distances, item_ids)``, both ``[queries, min(k, rankable)]`` of the type of ``queries``: L2 distances
            (not squared) in float64, int64 ids. An approximate index may miss items, but its distances are exact.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        points = checked_queries(queries, self.dimension)
        k = min(k, len(self._ids))
        ids = np.empty((len(points), k), dtype=np.int64)
        for block in _blocks(len(points), len(self._ids)):
            ids[block] = self._nearest(points[block], k)
        distances = self._direct_table(points, ids)
        return like(distances, queries), like(ids, queries)

    def distances(self, queries: Any, *, expand: bool = False) -> Any:
        """Distances to the whole catalogue, in the order of the direct distances, exact ties included.

        Values that could be confused with another, and small ones, are direct; the rest are the float64 matrix form.

        Args:
            queries: ``[queries, d]``.
            expand: let every item that shares a title take the distance of its representative.

        Returns:
            float64 ``[queries, items]`` of the type of ``queries``; +inf where an item is not rankable.
        """
        points = checked_queries(queries, self.dimension)
        result = np.full((len(points), len(self._rankable)), np.inf)
        for block in _blocks(len(points), len(self._ids)):
            result[block, self._ids] = self._ordered_distances(points[block])
        if expand:
            duplicates = np.flatnonzero(~self._rankable & self._rankable[self._representative])
            result[:, duplicates] = result[:, self._representative[duplicates]]
        return like(result, queries)

    def _count_before(self, points: np.ndarray, target_rows: np.ndarray) -> np.ndarray:
        """Counts the items before the target: by the matrix form where that is certain, else by direct distances.

        With centred ``q`` and ``x`` the half squared distance is ``|q|^2/2 - s``, ``s = q.x - |x|^2/2``; ``s`` decides
        against the target's own ``s`` unless both lie within the error bound.
        """
        centred = points.astype(np.float64) - self._centre
        target = self._embeddings[target_rows].astype(np.float64) - self._centre
        of_target = (centred * target).sum(axis=1) - 0.5 * (target * target).sum(axis=1)
        bound = self._single_bound(np.linalg.norm(centred, axis=1))
        with np.errstate(all="ignore"):  # what overflows is not finite, therefore not certain, therefore direct
            scores = self._scores(centred.astype(np.float32))
            closer = scores > (of_target + bound).astype(np.float32)[:, None]
            certain = closer | (scores < (of_target - bound).astype(np.float32)[:, None])
        queries, columns = np.divmod(np.flatnonzero(~certain), len(self._ids))
        own = self._direct(points, np.arange(len(points)), target_rows)[queries]
        other = self._direct(points, queries, self._rows(columns))
        before = (other < own) | ((other == own) & (self._ids[columns] < target_rows[queries]))
        return np.count_nonzero(closer, axis=1) + np.bincount(queries[before], minlength=len(points))

    def _scores(self, centred: np.ndarray) -> np.ndarray:
        """``q.x - |x|^2/2``, float32 ``[queries, rankable]``, summed panel by panel, which tightens the error bound."""
        scores = np.broadcast_to(-self._half_square, (len(centred), len(self._ids))).copy()
        for start in range(0, self.dimension, _PANEL):
            panel = slice(start, start + _PANEL)
            scores += centred[:, panel] @ self._centred[:, panel].T
        return scores

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

    def _nearest(self, points: np.ndarray, k: int) -> np.ndarray:
        """Item ids ``[queries, k]`` of the nearest items by direct distance, equal distances by lower id."""
        centred = points.astype(np.float64) - self._centre
        squared, columns = self._candidates(centred.astype(np.float32), min(k + _SPARE_CANDIDATES, len(self._ids)))
        found = columns >= 0
        columns = np.sort(np.where(found, columns, len(self._ids)), axis=1)  # by id, for the stable sort below
        valid = columns < len(self._ids)
        direct = np.full(columns.shape, np.inf)
        queries, places = np.nonzero(valid)
        direct[queries, places] = self._direct(points, queries, self._rows(columns[queries, places]))
        order = np.argsort(direct, axis=1, kind="stable")[:, :k]
        chosen = np.take_along_axis(columns, order, axis=1)
        complete = np.count_nonzero(found, axis=1) >= k
        if self.exact and columns.shape[1] < len(self._ids):
            # Whatever was not retrieved is farther than the last candidate, up to rounding on both sides.
            size = (np.linalg.norm(centred, axis=1) + self._radius) ** 2
            error = np.where(size < _HUGE, 4 * (self.dimension + 8) * (_SINGLE * size + _TINY), np.nan)
            kth = np.take_along_axis(direct, order, axis=1)[:, -1]
            complete &= kth**2 < squared[:, -1] - error
        again = np.flatnonzero(~complete)
        if len(again):
            chosen[again] = np.argsort(self._ordered_distances(points[again]), axis=1, kind="stable")[:, :k]
        return self._ids[chosen]

    def _candidates(self, centred: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances, ascending, and columns (-1: none found), both ``[queries, count]``, up to rounding."""
        if self._approximate is not None:
            return self._approximate.search(centred, count)
        if self._faiss is not None:
            return self._faiss.knn(centred, self._centred, count)
        import torch

        with np.errstate(all="ignore"):
            scores = torch.from_numpy(self._scores(centred))
        values, columns = torch.topk(scores, count, dim=1)
        norms = np.einsum("nd,nd->n", centred, centred, dtype=np.float64)
        return norms[:, None] - 2.0 * values.numpy().astype(np.float64), columns.numpy()

    def _ordered_distances(self, points: np.ndarray) -> np.ndarray:
        """Distances ``[queries, rankable]`` whose order and ties are those of the direct distances."""
        points = points.astype(np.float64)
        own = np.einsum("qd,qd->q", points, points)
        squared = np.empty((len(points), len(self._ids)))
        largest = 0.0
        for block in _blocks(len(self._ids), self.dimension):
            rows = self._embeddings[self._rows(block)].astype(np.float64)
            norms = np.einsum("nd,nd->n", rows, rows)
            squared[:, block] = own[:, None] + norms - 2.0 * (points @ rows.T)
            largest = max(largest, float(norms.max()))
        error = 4 * (self.dimension + 8) * _DOUBLE * (np.sqrt(own) + np.sqrt(largest)) ** 2
        order = np.argsort(squared, axis=1)
        near = np.diff(np.take_along_axis(squared, order, axis=1), axis=1) <= 2 * error[:, None]
        close = np.zeros(squared.shape, dtype=bool)
        close[:, 1:] |= near
        close[:, :-1] |= near
        uncertain = squared <= 1e9 * error[:, None]  # a small difference of large numbers has few right digits
        np.put_along_axis(close, order, close.copy(), axis=1)
        queries, columns = np.nonzero(uncertain | close)
        result = np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared)
        result[queries, columns] = self._direct(points, queries, self._rows(columns))
        return result

    def _direct_table(self, points: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Direct distances ``[queries, k]`` of ``ids[queries, k]``."""
        queries = np.repeat(np.arange(len(points)), ids.shape[1])
        return self._direct(points, queries, self._representative[ids.ravel()]).reshape(ids.shape)

    def _direct(self, points: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Direct distances ``[pairs]`` between ``points[queries]`` and ``embeddings[rows]``: the ones that count."""
        result = np.empty(len(rows))
        for block in _blocks(len(rows), self.dimension, _GATHER_ELEMENTS):
            difference = points[queries[block]].astype(np.float64)
            difference -= self._embeddings[rows[block]]
            difference *= difference
            difference.sum(axis=1, out=result[block])
        return np.sqrt(result, out=result)

    def _rows(self, columns: Any) -> np.ndarray:
        """Rows of the embedding table that stand for the rankable items at ``columns``."""
        return self._representative[self._ids[columns]]

    def _centre_rows(self) -> np.ndarray:
        """float32 ``[rankable, d]`` minus the mean row, which it keeps: without the mean the matrix form errs less."""
        blocks = list(_blocks(len(self._ids), self.dimension))
        for block in blocks:
            self._centre += self._embeddings[self._rows(block)].sum(axis=0, dtype=np.float64)
        self._centre /= len(self._ids)
        centred = np.empty((len(self._ids), self.dimension), dtype=np.float32)
        with np.errstate(over="ignore"):
            for block in blocks:
                centred[block] = self._embeddings[self._rows(block)] - self._centre
        return centred

    def _build(self, factory: str, parameters: str) -> Any:
        """The trained and filled faiss index of a factory string."""
        try:
            index = self._faiss.index_factory(self.dimension, factory)
            if parameters:
                self._faiss.ParameterSpace().set_index_parameters(index, parameters)
            index.train(self._centred)
            index.add(self._centred)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(
                f"faiss refuses the index {factory!r} ({parameters or 'no search parameters'}) for {len(self._ids)} "
                f"items of width {self.dimension}: {reason}; use 'Flat' (exact) or a factory string such as 'HNSW32'"
            ) from error
        logger.info("the faiss index %r is approximate: a search may miss items; ranks stay exact", factory)
        return index


def _faiss_or_none() -> Any:
    """The faiss module; None where it is not installed, which the log says."""
    try:
        import faiss
    except ImportError:
        logger.warning("faiss is not installed: searching with the exact torch fallback (pip install faiss-cpu)")
        return None
    return faiss


def _blocks(length: int, width: int, elements: int = _BLOCK_ELEMENTS) -> Iterator[slice]:
    """Slices over ``length`` rows of ``width`` elements each, at most ``elements`` at a time."""
    step = max(1, elements // max(1, width))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
