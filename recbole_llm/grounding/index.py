"""``ItemIndex``: nearest items, ranks and distances over a catalogue of item embeddings.

Order and ties are those of direct distances (:mod:`recbole_llm.grounding.distances`); what finds the nearest items is
FAISS (:mod:`recbole_llm.grounding.engines`). Ties go to the lower id.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import numpy as np

from recbole_llm.arrays import Array, like
from recbole_llm.grounding.checks import (
    checked_embeddings,
    checked_ids,
    checked_queries,
    checked_rankable,
    checked_representative,
    checked_targets,
)
from recbole_llm.grounding.distances import blocks
from recbole_llm.grounding.engines import Engine, exact_engine, find_engine
from recbole_llm.grounding.members import Members
from recbole_llm.grounding.rank_metrics import NOT_RANKED
from recbole_llm.grounding.ranking import Ranking, rank_listed, rank_scores

logger = logging.getLogger(__name__)

_SPARE = 16  # points retrieved beyond k, so that rounding can rarely hide a true neighbour
_DEPTH = 100  # points that an approximate index lists for ranks, at least, so that topk does not decide what is found
_SAMPLE = 100  # queries that the recall of an approximate index is measured on, at most


class ItemIndex:
    """The catalogue as points; queries are the embeddings of generated texts (BIGRec, section 3.2, arXiv 2308.08434).

    Args:
        embeddings: ``[items, d]``, array or tensor; row ``i`` belongs to item id ``i``. Not copied: leave it unchanged.
        rankable: bool ``[items]``, the items that compete for a rank; items without an embedding (zero rows) never do.
            By default every item but the padding id 0 that has an embedding and is its own representative.
        representative: int ``[items]``, the item whose embedding stands for the item: the lowest id that has the same
            title. By default the item itself.
        factory: faiss factory string. ``Flat`` is exact; others (``IVF64,Flat``, ``HNSW32``) make :meth:`search` and
            :meth:`rank` approximate. Without faiss an exact torch search replaces them all.
        search_parameters: faiss parameters of an approximate index, such as ``nprobe=16`` or ``efSearch=64``.
        device: where faiss searches: ``cpu``, or a CUDA device if faiss is built for GPUs (else the CPU).

    Attributes:
        recall: share of the exact nearest items that an approximate index finds; None before its first search, and for
            an exact one.

    Raises:
        InputError: an embedding holds NaN or infinity, no item is rankable, or faiss refuses ``factory``.
        ValueError: shapes do not fit, or ``representative`` is no map onto representatives.

    Example:
        >>> index = ItemIndex([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # item 0 is padding
        >>> distances, items = index.search([[0.9, 0.0]], k=2)
        >>> items.tolist(), index.rank_of([[0.9, 0.0]], targets=[2]).tolist()
        ([[1, 2]], [1])
    """

    def __init__(
        self,
        embeddings: Array,
        rankable: Array | None = None,
        representative: Array | None = None,
        factory: str = "Flat",
        *,
        search_parameters: str = "",
        device: str = "cpu",
    ) -> None:
        self._embeddings = checked_embeddings(embeddings)
        n_items, self.dimension = self._embeddings.shape
        self._representative = checked_representative(representative, n_items)
        self._rankable = checked_rankable(rankable, self._embeddings, self._representative)
        self._ids = np.flatnonzero(self._rankable)
        rows = self._representative[self._ids]
        self._engine = find_engine(self._embeddings, rows, factory, search_parameters, device)
        self._points = self._engine.points
        self._factory = factory
        self.recall: float | None = None
        if not self.exact:
            logger.info(
                "FAISS index %r is approximate: ranks and top-k lists come from what it finds; its recall follows "
                "at the first search",
                factory,
            )

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
        """Whether ``search`` and ``rank`` are exact; ``rank_of`` and ``distances`` always are."""
        return self._engine.exact

    def rank_of(self, queries: Array, targets: Array) -> Any:
        """Ranks one target per query among the rankable items, exactly, without sorting.

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
        return like(self._points.count_before(points, rows, rows, self._alone), queries)

    def search(self, queries: Array, k: int) -> tuple[Any, Any]:
        """Finds the nearest rankable items, nearest first, equal distances by lower id.

        Args:
            queries: ``[queries, d]``.
            k: number of items wanted; never more than the rankable ones are returned.

        Returns:
            ``(distances, item_ids)``, both ``[queries, min(k, rankable)]`` of the type of ``queries``: L2 distances
            (not squared) in float64, int64 ids. An approximate index may miss items, but its distances are exact.
        """
        distances, indices = self._nearest(checked_queries(queries, self.dimension), k, k)
        return like(distances, queries), like(self._ids[indices], queries)

    def rank(self, queries: Array, targets: Array | None, k: int) -> Ranking:
        """Ranks all items: the rankable ones and those that they represent, at the same distance, in the order of ids.

        An exact index ranks every target. An approximate one lists the items of the nearest points that it finds, 100
        points or ``k`` if that is more, and the rank of a target is its position in that list; one that is not listed
        is not ranked (-1), which every metric at ``k`` and below counts as a miss.

        Args:
            queries: ``[queries, d]``.
            targets: int ``[queries]``, item ids; None for none. A target that is not in the ranking has rank -1.
            k: length of the lists; what exceeds the number of items is padded.

        Returns:
            The ranking; scores are minus the distances.
        """
        points = checked_queries(queries, self.dimension)
        wanted = None if targets is None else checked_ids(targets, len(points), len(self._rankable))
        if self.exact and not self._ascending:
            return rank_scores(-self._table(points, expand=True), wanted, k)
        distances, indices = self._nearest(points, k, k if self.exact else _DEPTH)
        items, values = self._members.expand(indices, distances)
        ranking = rank_listed(items, 0.0 - values, wanted, k)
        if self.exact and wanted is not None:
            ranking.ranks[:] = self._count(points, wanted)
        return ranking

    def distances(self, queries: Array, *, expand: bool = False) -> Any:
        """Distances to the whole catalogue, in the order of the direct distances, exact ties included.

        Values that could be confused with another, and small ones, are direct; the rest are the float64 matrix form.

        Args:
            queries: ``[queries, d]``.
            expand: let every item that shares a title take the distance of its representative.

        Returns:
            float64 ``[queries, items]`` of the type of ``queries``; +inf where an item is not rankable.
        """
        return like(self._table(checked_queries(queries, self.dimension), expand), queries)

    def _table(self, points: np.ndarray, expand: bool) -> np.ndarray:
        result = np.full((len(points), len(self._rankable)), np.inf)
        for block in blocks(len(points), len(self._ids)):
            result[block, self._ids] = self._points.table(points[block])
        if expand:
            followers = self._followers
            result[:, followers] = result[:, self._representative[followers]]
        return result

    def _nearest(self, points: np.ndarray, k: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest ``k`` rankable items, and more up to ``depth`` if they are found; ties by lower id.

        Returns:
            Distances and indices among the rankable items, both ``[queries, max(k, depth)]``, no wider than there are
            items; +inf and -1 after the last one found.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        k, depth = min(k, len(self._ids)), min(max(k, depth), len(self._ids))
        distances, indices = np.empty((len(points), depth)), np.empty((len(points), depth), dtype=np.int64)
        for block in blocks(len(points), depth + _SPARE):
            distances[block], indices[block] = self._nearest_by(self._engine, points[block], k, depth)
        if not self.exact and self.recall is None and len(points):
            self._measure_recall(points, indices[:, :k])
        return distances, indices

    def _nearest_by(self, engine: Engine, points: np.ndarray, k: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`_nearest`; where an engine finds less than ``k``, or rounding may hide one, others look again."""
        centred = self._points.centre_queries(points)
        squared, found = engine.nearest(centred.astype(np.float32), min(depth + _SPARE, len(self._ids)))
        found, direct = self._in_order(points, found)
        complete = found[:, k - 1] >= 0
        if engine.exact and found.shape[1] < len(self._ids):
            # Whatever was not retrieved is farther than the last one retrieved, up to rounding on both sides.
            with np.errstate(invalid="ignore"):
                complete &= direct[:, k - 1] ** 2 < squared[:, -1] - self._points.search_error(centred)
        direct, found = direct[:, :depth], found[:, :depth]
        again = np.flatnonzero(~complete)
        if len(again):
            reach = direct[again, k - 1]
            direct[again], found[again] = np.inf, -1
            if engine.exact:
                direct[again, :k], found[again, :k] = self._points.nearest_within(points[again], reach, k)
            else:
                exact = exact_engine(self._points)
                direct[again, :k], found[again, :k] = self._nearest_by(exact, points[again], k, k)
        return direct, found

    def _in_order(self, points: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The indices of each row and their direct distances, nearest first, equal distances by lower id, -1 last."""
        last = len(self._ids)
        indices = np.sort(np.where(indices >= 0, indices, last), axis=1)  # by id, for the stable sort below
        indices = np.where(indices < last, indices, -1)
        direct = self._points.direct_table(points, indices)
        order = np.argsort(direct, axis=1, kind="stable")
        return np.take_along_axis(indices, order, axis=1), np.take_along_axis(direct, order, axis=1)

    def _measure_recall(self, points: np.ndarray, indices: np.ndarray) -> None:
        """Compare what was found for some queries with what there is, once, and log it."""
        k = indices.shape[1]
        sample = np.unique(np.linspace(0, len(points) - 1, _SAMPLE).astype(np.int64))
        exact = self._nearest_by(exact_engine(self._points), points[sample], k, k)[1]
        found = [len(np.intersect1d(*rows)) / k for rows in zip(exact, indices[sample], strict=True)]
        self.recall = float(np.mean(found))
        logger.info(
            "FAISS index %r finds %.1f %% of the exact top %d (recall, measured on %d queries)",
            *(self._factory, 100 * self.recall, k, len(sample)),
        )

    def _count(self, points: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Exact ranks int64 ``[queries]`` of the targets among all items; -1 where a target is not among them."""
        ranks = np.full(len(points), NOT_RANKED, dtype=np.int64)
        listed = np.flatnonzero(self._point_of_item[targets] >= 0)
        ids = targets[listed]
        rows = self._representative[ids]
        ranks[listed] = self._points.count_before(points[listed], rows, ids, self._members)
        return ranks

    @cached_property
    def _followers(self) -> np.ndarray:
        """Items that are not rankable themselves, but represented by one that is."""
        return np.flatnonzero(~self._rankable & self._rankable[self._representative])

    @cached_property
    def _point_of_item(self) -> np.ndarray:
        """int64 ``[items]``: where each item stands; -1 for those that are in no ranking."""
        point = np.full(len(self._rankable), -1, dtype=np.int64)
        point[self._ids] = np.arange(len(self._ids))
        point[self._followers] = point[self._representative[self._followers]]
        return point

    @cached_property
    def _members(self) -> Members:
        return Members.of(self._point_of_item, len(self._ids))

    @cached_property
    def _alone(self) -> Members:
        """The rankable items alone."""
        return Members(self._ids, np.arange(len(self._ids) + 1))

    @cached_property
    def _ascending(self) -> bool:
        """Whether no item has a lower id than the one that represents it: then k points hold the first k items."""
        return bool((self._followers > self._representative[self._followers]).all())
