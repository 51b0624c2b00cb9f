"""The newest items of a history."""

from __future__ import annotations

from typing import Any

import numpy as np

from recbole_llm.arrays import Array, like, to_numpy


def last_items(history: Array, length: int, max_length: int, pad: int = 0) -> Any:
    """The newest ``length`` items, padded on the left to ``max_length``.

    Args:
        history: int64 [any], oldest first, without padding.
        length: items to keep; more than there are keeps all, more than ``max_length`` that many.
        max_length: entries of the result.
        pad: what fills it.

    Returns:
        int64 [max_length].

    Raises:
        ValueError: length or max_length < 0, or more than one history.

    Example:
        >>> last_items([5, 6, 7, 8], length=2, max_length=4).tolist()
        [0, 0, 7, 8]
    """
    items = to_numpy(history).astype(np.int64)
    if length < 0:
        raise ValueError(f"length must be >= 0, not {length}")
    if max_length < 0:
        raise ValueError(f"max_length must be >= 0, not {max_length}")
    if items.ndim != 1:
        raise ValueError(f"one history [any] is needed, not {items.shape}")
    kept = items[max(len(items) - min(length, max_length), 0) :]
    padded = np.full(max_length, pad, dtype=np.int64)
    padded[max_length - len(kept) :] = kept
    return like(padded, history)
