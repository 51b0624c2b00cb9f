"""Checks of the arguments of a selection: each function returns the value to compute with, or refuses it."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from recbole_llm.arrays import Array, to_float, to_numpy
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_SHOWN = 5  # ids in a message
_BLOCK_ELEMENTS = 2**22


def checked_ids(ids: Array) -> np.ndarray:
    """``[n]``, each id once; int64 where they are integers, else of any type that has an order."""
    array = _one_dimensional(ids)
    fits = array.dtype.kind in "iu" and bool((array <= np.iinfo(np.int64).max).all())
    if fits or not array.size:
        array = array.astype(np.int64)
    if missing := np.count_nonzero(array != array):  # NaN and its like
        raise InputError(f"coreset: {missing} row ids are NaN; give every row an id")
    try:
        values, counts = np.unique(array, return_counts=True)
    except TypeError as error:
        raise InputError(f"coreset: row ids have no order ({error}); give ids of one type") from error
    twice = values[counts > 1]
    if len(twice):
        shown = first_of(twice)
        raise InputError(f"coreset: {len(twice)} row ids occur more than once (first {shown}); give each once")
    return array


def _one_dimensional(ids: Array) -> np.ndarray:
    """Ids as an array; tuples, and a mixture of texts and others, stay what they are."""
    array = to_numpy(ids)
    if not hasattr(ids, "shape") and (array.ndim > 1 or array.dtype.kind in "US"):
        values = list(cast(Sequence[object], ids))
        if array.ndim > 1 or not all(isinstance(value, str | bytes) for value in values):
            array = np.fromiter(values, dtype=object, count=len(values))
    if array.ndim != 1:
        raise ValueError(f"ids must be [n], got {array.dtype} {list(array.shape)}")
    return array


def checked_indices(name: str, values: Array, n_rows: int) -> np.ndarray:
    """int64 ``[n]``, n >= 1: indices of rows, each once."""
    rows = checked_ids(values)
    if rows.dtype != np.int64 or not len(rows) or rows.min() < 0 or rows.max() >= n_rows:
        raise InputError(f"{name} must hold indices of the {n_rows} training rows, at least one", about=name)
    return rows


def checked_count(name: str, value: object, low: int = 0) -> int:
    """An integer of at least ``low``; True and 2.0 are none."""
    try:
        count = None if isinstance(value, bool | np.bool_) else operator.index(cast(SupportsIndex, value))
    except TypeError:
        count = None
    if count is None or count < low:
        raise InputError(f"{name}: {value!r} is not allowed; give an integer >= {low}")
    return count


def checked_budget(budget: object, available: int) -> int:
    """Rows to select, at most those available; a warning where the budget is larger."""
    wanted = checked_count("coreset budget", budget)
    if wanted > available:
        log.warning("coreset budget %d exceeds the %d rows to select from: selecting all of them", wanted, available)
    return min(wanted, available)


def checked_size(name: str, size: object, n_rows: int) -> int:
    """Rows that a size means: an integer is a count, a decimal a share of the rows there are, rounded down.

    Raises:
        InputError: it is neither, or the share is less than one row.
    """
    if isinstance(size, float | np.floating) and 0 < size <= 1:
        rows = share_of(size, n_rows)
        if n_rows and not rows:
            raise InputError(f"{name}: {size} of {n_rows} rows is less than one; raise it")
        return rows
    try:
        return checked_count(name, size)
    except InputError:
        allowed = "an integer >= 0 (a count) or a decimal in (0, 1] (a share)"
        raise InputError(f"{name}: {size!r} is not allowed; give {allowed}") from None


def checked_ratio(name: str, value: object) -> float:
    """A number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < 1:
        raise InputError(f"{name}: {value!r} is not allowed; give a number >= 0 and < 1")
    return float(str(value))  # of fewer bits it is the decimal that it shows: float(np.float32(0.29)) is less than 0.29


def checked_number(name: str, value: object, positive: bool = False) -> float:
    """A finite number >= 0, or > 0."""
    number = float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise InputError(f"{name}: {value!r} is not allowed; give a finite number {'>' if positive else '>='} 0")
    return number


def share_of(ratio: float | np.number[Any], count: int) -> int:
    """floor(ratio * count) of the decimal as it is written: 0.29 of 100 is 29, which in floating point is 28."""
    return int(Fraction(str(ratio)) * count)


def checked_scores(name: str, values: Array, ids: np.ndarray | None = None) -> np.ndarray:
    """Finite float64 ``[n]``, one per row.

    Args:
        name: name of the scores, for the message.
        values: array, tensor or sequence.
        ids: int ``[n]``, the rows they must belong to; by default however many there are.
    """
    scores = to_numpy(values).astype(np.float64)
    if scores.ndim != 1:
        raise InputError(f"{name} must be [n], one number per row, got {list(scores.shape)}", about=name)
    _check_finite(name, np.isfinite(scores), ids if ids is not None else np.arange(len(scores)))
    return scores


def checked_repeats(name: str, values: Array, ids: np.ndarray) -> np.ndarray:
    """Finite float64 ``[n]``: of several measurements ``[n, repeats]`` per row their mean."""
    scores = to_numpy(values).astype(np.float64)
    return checked_scores(name, scores.mean(axis=1) if scores.ndim == 2 and scores.shape[1] else scores, ids)


def checked_vectors(name: str, values: Array, ids: np.ndarray) -> np.ndarray:
    """Finite float32 or float64 ``[n, d]``, one row each; not copied where it need not be."""
    vectors = to_float(values)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise InputError(f"{name} must be [n, d], one vector per row, got {list(vectors.shape)}", about=name)
    step = max(1, _BLOCK_ELEMENTS // vectors.shape[1])
    starts = range(0, len(vectors), step)
    finite = [np.isfinite(vectors[start : start + step]).all(axis=1) for start in starts]
    _check_finite(name, np.concatenate(finite) if finite else np.ones(0, dtype=bool), ids)
    return vectors


def checked_counts(name: str, values: Array, ids: np.ndarray) -> np.ndarray:
    """Finite float64 ``[n]`` >= 0."""
    counts = checked_scores(name, values, ids)
    negative = ids[counts < 0]
    if len(negative):
        raise InputError(f"{name}: {len(negative)} rows have a negative value (first {first_of(negative)})")
    return counts


def checked_texts(name: str, values: object, ids: np.ndarray | None = None) -> list[str]:
    """A list of texts."""
    texts = [] if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) else list(values)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} must be a list of texts", about=name)
    if ids is not None:
        check_length(name, len(texts), len(ids))
    return texts


def check_length(name: str, length: int, n_rows: int) -> None:
    """Refuse an input that does not hold one entry per row."""
    if length != n_rows:
        raise InputError(f"{name}: {length} entries for {n_rows} rows; both must be of the same rows", kind="conflict")


def check_losses(losses: Tensor, origin: str, advice: str) -> Tensor:
    """The losses of a batch as they are.

    Args:
        losses: ``[rows]``.
        origin: what they are computed for, the first words of the message.
        advice: what to do where one is not finite, the last words.

    Raises:
        InputError: a loss is NaN or infinite.
        ValueError: they are not ``[rows]``.
    """
    if losses.ndim != 1:
        raise ValueError(f"losses must be [rows], got {[*losses.shape]}")
    wrong = (~losses.detach().isfinite()).nonzero().flatten()
    if len(wrong):
        raise InputError(
            f"{origin}: {len(wrong)} of {len(losses)} rows of a batch have a loss of NaN or infinity (first "
            f"{int(wrong[0])}); {advice}",
            kind="numeric",
        )
    return losses


def first_of(ids: np.ndarray) -> str:
    """The first ids as text, for a message."""
    return ", ".join(map(str, ids[:_SHOWN].tolist())) + (", ..." if len(ids) > _SHOWN else "")


def _check_finite(name: str, finite: np.ndarray, ids: np.ndarray) -> None:
    check_length(name, len(finite), len(ids))
    wrong = ids[~finite]
    if len(wrong):
        raise InputError(
            f"{name}: {len(wrong)} of {len(ids)} rows hold NaN or infinity (first ids {first_of(wrong)}); "
            "check the model that gave them and its number type",
            kind="numeric",
        )
