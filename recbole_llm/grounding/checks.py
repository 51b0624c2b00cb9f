"""Checks of an index's arguments: each function returns the array to compute with, or refuses it."""

from __future__ import annotations

import numpy as np

from recbole_llm.arrays import Array, to_float, to_numpy
from recbole_llm.errors import InputError
from recbole_llm.grounding.distances import blocks


def checked_embeddings(embeddings: Array) -> np.ndarray:
    """Finite float32 or float64 ``[items, d]``."""
    table = to_float(embeddings)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"embeddings must be [items, d], got {list(table.shape)}")
    parts = [table[block] for block in blocks(*table.shape)]  # no table of as many flags as numbers
    wrong = np.flatnonzero(~np.concatenate([np.isfinite(part).all(axis=1) for part in parts]))
    if len(wrong):
        raise InputError(
            f"the embedding of item {wrong[0]} holds NaN or infinity ({len(wrong)} such items): "
            "check its text and the precision of the LLM (dtype: float32)",
            kind="numeric",
        )
    return table


def checked_representative(representative: Array | None, n_items: int) -> np.ndarray:
    """int64 ``[items]``, a map onto items that represent themselves; by default every item does."""
    if representative is None:
        return np.arange(n_items)
    rows = to_numpy(representative)
    if rows.shape != (n_items,) or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"representative must be int [{n_items}], got {rows.dtype} {list(rows.shape)}")
    rows = np.asarray(rows, dtype=np.int64)
    if (rows < 0).any() or (rows >= n_items).any() or (rows[rows] != rows).any():
        raise ValueError("representative must map every item to an item that represents itself")
    return rows


def checked_rankable(rankable: Array | None, embeddings: np.ndarray, representative: np.ndarray) -> np.ndarray:
    """bool ``[items]``, never true where the representative's embedding is a zero row.

    By default all representatives but the padding id 0.
    """
    n_items = len(embeddings)
    if rankable is None:
        mask: np.ndarray = representative == np.arange(n_items)
        mask[0] = False
    else:
        mask = to_numpy(rankable)
        if mask.shape != (n_items,) or mask.dtype != bool:
            raise ValueError(f"rankable must be bool [{n_items}], got {mask.dtype} {list(mask.shape)}")
        mask = mask.copy()
    mask &= embeddings.any(axis=1)[representative]
    if not mask.any():
        raise InputError(
            "no item can be ranked: every embedding row is zero or excluded; check the item texts", kind="data"
        )
    return mask


def checked_queries(queries: Array, dimension: int) -> np.ndarray:
    """Finite float32 or float64 ``[queries, d]``."""
    points = to_float(queries)
    if points.ndim != 2 or points.shape[1] != dimension:
        raise ValueError(f"queries must be [queries, {dimension}] as the items are, got {list(points.shape)}")
    wrong = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(wrong):
        raise ValueError(f"query {wrong[0]} holds NaN or infinity ({len(wrong)} such queries)")
    return points


def checked_ids(targets: Array, n_queries: int, n_items: int) -> np.ndarray:
    """Item ids int64 ``[queries]``."""
    ids = to_numpy(targets)
    if ids.shape != (n_queries,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"targets must be int [{n_queries}], one per query, got {ids.dtype} {list(ids.shape)}")
    outside = ids[(ids < 0) | (ids >= n_items)]
    if len(outside):
        raise ValueError(f"target {outside[0]} is no item: ids go from 0 to {n_items - 1}")
    return ids.astype(np.int64)


def checked_targets(targets: Array, n_queries: int, rankable: np.ndarray, representative: np.ndarray) -> np.ndarray:
    """Rows ``[queries]`` of the embedding table that stand for the targets."""
    ids = checked_ids(targets, n_queries, len(rankable))
    rows: np.ndarray = representative[ids]
    hidden = ids[~(rankable[ids] | rankable[rows])]
    if len(hidden):
        raise ValueError(f"target {hidden[0]} cannot be ranked: it is padding, excluded or has no embedding")
    return rows
