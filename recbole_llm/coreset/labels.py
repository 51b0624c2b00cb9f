"""Optional classes of rows as an input of selectors."""

from __future__ import annotations

from functools import partial

import numpy as np

from recbole_llm.arrays import Array, to_numpy
from recbole_llm.coreset.checks import check_length
from recbole_llm.coreset.selector import Input
from recbole_llm.errors import InputError


def checked_labels(name: str, values: Array, ids: np.ndarray) -> np.ndarray:
    """``[n]``, finite, one per row."""
    labels = to_numpy(values)
    if labels.ndim != 1 or (np.issubdtype(labels.dtype, np.floating) and not np.isfinite(labels).all()):
        raise InputError(f"{name} must be [n], one finite label per row", about=name)
    check_length(name, len(labels), len(ids))
    return labels


def one_class(ids: np.ndarray) -> np.ndarray:
    """Labels of rows that are all of one class: the default if none are given."""
    return np.zeros(len(ids), dtype=np.int64)


LABELS = Input(
    "labels", "[n]: classes of the rows, of a click task", partial(checked_labels, "labels"), default=one_class
)
