"""Diversity of lists: distances within them, coverage, novelty."""

from __future__ import annotations

from typing import Any

import numpy as np

from recbole_llm.arrays import Array, like, to_ids, to_numpy


def intra_list_distance(items: Array, distances: Array) -> Any:
    """Mean distance of the pairs of each list.

    Args:
        items: int64 [q, k], a list per row.
        distances: [n, n], symmetric.

    Returns:
        float64 [q]; 0 for lists of one item.

    Raises:
        ValueError: an item is not one of the n.

    Example:
        >>> intra_list_distance([[0, 1, 2]], [[0, 1, 1], [1, 0, 4], [1, 4, 0]]).tolist()
        [2.0]
    """
    table = to_numpy(distances).astype(np.float64)
    lists = to_ids(items, len(table), "item")
    first, second = np.triu_indices(lists.shape[1], 1)
    sums = np.zeros(len(lists))
    for i, j in zip(first, second, strict=True):  # pair by pair: no table [lists, pairs]
        sums += table[lists[:, i], lists[:, j]]
    return like(sums / max(len(first), 1), items)


def embedding_distance(items: Array, embeddings: Array) -> Any:
    """Mean cosine distance of the pairs of each list, without a table of all pairs of items.

    Args:
        items: int64 [q, k], a list per row.
        embeddings: [n, d]; an item whose vector is 0 is at distance 1 from every other.

    Returns:
        float64 [q]; 0 for lists of one item.

    Example:
        >>> embedding_distance([[0, 1], [0, 2]], [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]).tolist()
        [0.0, 1.0]
    """
    lists, vectors = to_numpy(items).astype(np.int64), to_numpy(embeddings).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    k, sums = lists.shape[1], np.zeros((len(lists), vectors.shape[1]))
    for position in range(k):  # the squared length of a sum holds all pairs
        sums += unit[lists[:, position]]
    alone = (lengths[lists, 0] > 0).sum(axis=1)
    pairs = max(k * (k - 1) / 2, 1)
    return like(np.where(k > 1, 1 - ((sums**2).sum(axis=1) - alone) / 2 / pairs, 0.0), items)


def category_coverage(items: Array, categories: Any, n_categories: int) -> Any:
    """Share of the categories that each list has an item of.

    Args:
        items: int64 [q, k], a list per row.
        categories: int64 [n], the category of each item, negative for none; or for each item the list of its
            categories; or [n, n_categories] of bools or of 0 and 1.
        n_categories: categories there are.

    Returns:
        float64 [q].

    Raises:
        ValueError: an item has no entry in ``categories``, or a category is not one of those there are.

    Example:
        >>> category_coverage([[0, 1], [0, 2]], [0, 0, 1], 4).tolist()
        [0.25, 0.5]
    """
    members = _membership(categories, n_categories)
    covered = members[to_ids(items, len(members), "item")].any(axis=1)
    return like(covered.sum(axis=1) / n_categories, items)


def novelty(items: Array, counts: Array) -> Any:
    """Mean of ``-log2`` of an item's share of the training interactions, add-one smoothed.

    Args:
        items: int64 [q, k], a list per row.
        counts: int64 [n], training interactions of each item of the catalogue.

    Returns:
        float64 [q], in bits; 0 for empty lists.

    Raises:
        ValueError: an item has no count, or a count is negative.

    Example:
        >>> novelty([[0], [1]], [2, 0]).tolist()
        [0.4150374992788438, 2.0]
    """
    smoothed = to_numpy(counts).astype(np.float64) + 1
    lists = to_ids(items, len(smoothed), "item")
    if (smoothed < 1).any():
        raise ValueError(f"counts must be >= 0, not {smoothed.min() - 1:g}")
    bits = -np.log2(smoothed / smoothed.sum())[lists]
    return like(bits.mean(axis=1) if lists.shape[1] else np.zeros(len(lists)), items)


def _membership(categories: Any, n_categories: int) -> np.ndarray:
    """bool [n, n_categories] of whatever form categories are given in."""
    if not isinstance(categories, (list, tuple)):
        table = to_numpy(categories)
        if table.dtype == bool or (table.ndim == 2 and table.shape[1] == n_categories and np.isin(table, (0, 1)).all()):
            return table.astype(bool)
        categories = table.tolist()
    of_items = [np.atleast_1d(to_numpy(one)) for one in categories]
    if n_categories > 1 and all(len(one) == n_categories and np.isin(one, (0, 1)).all() for one in of_items):
        return np.array(of_items, dtype=bool).reshape(-1, n_categories)  # as ids, all items would have all categories
    members = np.zeros((len(of_items), n_categories), dtype=bool)
    for item, ids in enumerate(of_items):
        members[item, to_ids(ids[ids >= 0], n_categories, "category")] = True
    return members
