"""Category hit ratio: whether one of the first k items shares a category with the target."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence

import numpy as np

from recbole_llm.arrays import Array
from recbole_llm.rerank.space import category_members

COMMON_SHARE = 0.9
Categories = Sequence[Collection[Hashable]]
log = logging.getLogger(__name__)


def category_ranks(top_items: Array, targets: Array, categories: Categories) -> np.ndarray:
    """0-based position of the first recommended item that shares a category with the target.

    Args:
        top_items: item ids ``[rows, k]``, best first; 0 is padding (no item).
        targets: item ids ``[rows]``.
        categories: the categories of every item by item id, none where they are unknown.

    Returns:
        int64 ``[rows]``; ``k`` where no item shares one, -1 where the target has no category.

    Raises:
        ValueError: the rows differ in number.
    """
    top, wanted = np.asarray(top_items), np.asarray(targets)
    if top.ndim != 2 or wanted.shape != top.shape[:1]:
        raise ValueError(f"top_items [rows, k] and targets [rows] do not fit: {list(top.shape)}, {list(wanted.shape)}")
    bits = _category_bits(categories)
    own = bits[wanted]
    ranks = np.full(len(top), top.shape[1], dtype=np.int64)
    for position in reversed(range(top.shape[1])):  # one position at a time: all at once would take k times the memory
        ranks[(bits[top[:, position]] & own).any(axis=1)] = position
    ranks[~own.any(axis=1)] = -1
    return ranks


def category_hit_ratio(
    top_items: Array, targets: Array, categories: Categories, topk: Iterable[int]
) -> dict[str, float]:
    """Share of rows where one of the first k items shares a category with the target (SOFT, figure 2: "HC").

    Rows whose target has no category cannot be evaluated: they are left out, and the log says how many.

    Args:
        top_items: item ids ``[rows, at least max(topk)]``, best first; 0 is padding and never a hit.
        targets: item ids ``[rows]``.
        categories: the categories of every item by item id, none where they are unknown.
        topk: cut-offs.

    Returns:
        ``{"category_hit@1": ..., "category_hit@10": ...}``; empty if no target has a category.

    Raises:
        ValueError: the rows differ in number, or a cut-off exceeds the recommended items or is below 1.

    Example:
        >>> kinds = [[], ["comedy"], ["crime"], ["comedy"]]  # by item id; item 0 is padding
        >>> category_hit_ratio([[2, 3], [2, 1]], targets=[1, 2], categories=kinds, topk=[1, 2])
        {'category_hit@1': 0.5, 'category_hit@2': 1.0}
    """
    ranks, cutoffs, width = category_ranks(top_items, targets, categories), tuple(topk), np.shape(top_items)[1]
    if not all(1 <= k <= width for k in cutoffs):
        raise ValueError(f"cut-offs must lie in 1..{width}, the number of recommended items; got {list(cutoffs)}")
    evaluated = ranks[ranks >= 0]
    if len(evaluated) < len(ranks):
        n_missing = len(ranks) - len(evaluated)
        log.info("%d of %d targets have no category; category_hit leaves them out", n_missing, len(ranks))
    return {f"category_hit@{k}": float((evaluated < k).mean()) for k in cutoffs} if len(evaluated) else {}


def drop_common(categories: Categories, share: float = COMMON_SHARE) -> list[list[Hashable]]:
    """The categories without those that nearly every item has.

    A catalogue of one department puts its name above all its items (Amazon's ``Video_Games``): with it, any item would
    be a hit for any target.

    Args:
        categories: the categories of every item by item id.
        share: a category goes if it is stated by more than this share of the items that state any.
    """
    counts = Counter(name for own in categories for name in set(own))
    n_items = sum(bool(own) for own in categories)
    common = {name for name, count in counts.items() if count > share * n_items}
    for name in sorted(common, key=str):
        log.info("category %s is left out: %d of %d items have it", name, counts[name], n_items)
    return [[name for name in own if name not in common] for own in categories]


def _category_bits(categories: Categories) -> np.ndarray:
    """Which item has which category, eight to a byte. Returns: uint8 [items, categories / 8]; item 0 has none."""
    members = category_members(categories)
    members[:1] = False
    return np.packbits(members, axis=1)
