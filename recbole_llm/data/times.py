"""Exact times of interactions, without rounding."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np

_ISO = re.compile(
    r"\d{4}-\d{2}(-\d{2}([T ]\d{2}(:?\d{2}(:?\d{2}([.,]\d{1,9})?)?)?(Z|[+-]\d{2}(:?\d{2})?)?)?)?", re.ASCII
)
_OFFSET = re.compile(r"[T ].*(Z|[+-]\d{2}(:?\d{2})?)$")
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_EXACT_DIGITS = 15  # so many significant digits of a decimal stay apart, and in order, in a float64


@dataclass(frozen=True)
class Times:
    """A column of times.

    Attributes:
        values: float64 [rows], as the file has them; dates in seconds since 1970, UTC.
        order: int64 or float64 [rows]: smaller is earlier, equal is the same time, exact where ``values`` round.
        dates: whether they were read from ISO dates.
        example: the first text of the file, for messages.
    """

    values: np.ndarray
    order: np.ndarray
    dates: bool
    example: str


class TimeReader:
    """Reads a column of times part by part; its first value decides whether it holds numbers or ISO dates.

    Args:
        kind: type in the header: ``float`` is numbers, ``token`` either.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._form: Literal["number", "date"] | None = "number" if kind == "float" else None
        self._offset: bool | None = None
        self._example = ""
        self._parts: list[np.ndarray | list[str]] = []

    def check(self, name: str, texts: Sequence[str]) -> dict[int, str]:
        """What is wrong with the texts of some rows, by row."""
        self._decide(texts)
        wrong = _no_numbers if self._form == "number" else self._no_dates
        bad = wrong(texts)
        if not bad:
            return {}
        if self._form == "number":
            what = "no number" + ("; declare it as token to have ISO dates read" if self._kind == "float" else "")
            return {row: f"column '{name}' holds '{text}', a text that is {what}" for row, text in bad.items()}
        odd = {row: text for row, text in bad.items() if _ISO.fullmatch(text) and self._offset != _has_offset(text)}
        are_times = _nanoseconds(list(odd.values())) != _NOT_A_TIME
        mixed = {row: text for (row, text), is_time in zip(odd.items(), are_times.tolist(), strict=True) if is_time}
        like = "like 2024-05-31 or 2024-05-31T18:30:00" + ("Z" if self._offset else "")
        years = "of the years 1678 to 2261"  # what nanoseconds in 64 bits reach
        told = {row: f"column '{name}' holds '{text}', not an ISO date {like} {years}" for row, text in bad.items()}
        own, before = ("no", "one") if self._offset else ("an", "none")
        for row, text in mixed.items():
            what = f"'{text}' with {own} offset from UTC, and '{self._example}' with {before} before it"
            told[row] = f"column '{name}' holds {what}; write all times with Z or an offset, or none"
        return told

    def add(self, texts: Sequence[str]) -> None:
        """Take over texts that :meth:`check` found nothing wrong with."""
        texts = list(texts)
        if self._form == "date":
            self._parts.append(_nanoseconds(texts))
        elif all(map(_INTEGER.fullmatch, texts)):
            self._parts.append(np.array([int(text) for text in texts], dtype=np.int64))
        elif max(map(len, texts)) <= _EXACT_DIGITS:
            self._parts.append(np.array([float(text) for text in texts]))
        else:
            self._parts.append(texts)

    def finish(self) -> Times:
        """Times of all rows that were added."""
        order = self._order()
        if self._form == "date":
            return Times(order / 1e9, order, True, self._example)
        values = np.concatenate([np.array([float(time) for time in part]) for part in self._parts] or [np.empty(0)])
        return Times(values, order, False, self._example)

    def _order(self) -> np.ndarray:
        if not self._parts:
            return np.empty(0, dtype=np.int64)
        arrays = [part for part in self._parts if isinstance(part, np.ndarray)]
        integers = all(part.dtype.kind == "i" for part in arrays)
        small = all(part.dtype.kind == "f" or np.abs(part).max(initial=0) < 2**53 for part in arrays)
        if len(arrays) == len(self._parts) and (integers or small):
            return np.concatenate(arrays)
        exact = [Decimal(str(time)) for part in self._parts for time in part]
        order = {time: index for index, time in enumerate(sorted(set(exact)))}
        return np.array([order[time] for time in exact], dtype=np.int64)

    def _decide(self, texts: Sequence[str]) -> None:
        first = next((text for text in texts if text), None)
        if first is None or self._example:
            return
        self._example = first
        if self._form is None:
            self._form = "date" if _no_numbers([first]) else "number"
        self._offset = _has_offset(first)

    def _no_dates(self, texts: Sequence[str]) -> dict[int, str]:
        if self._form is None:  # nothing but empty texts so far
            return {}
        fits = [bool(_ISO.fullmatch(text)) and _has_offset(text) == self._offset for text in texts]
        parsed = _nanoseconds([text if fit else "" for text, fit in zip(texts, fits, strict=True)])
        return {row: texts[row] for row in np.flatnonzero(parsed == _NOT_A_TIME).tolist() if texts[row]}


_NOT_A_TIME = np.iinfo(np.int64).min  # NaT


def _has_offset(text: str) -> bool:
    """Whether a time says how far it is from UTC."""
    return _OFFSET.search(text) is not None


def _nanoseconds(texts: Sequence[str]) -> np.ndarray:
    """ISO dates as nanoseconds since 1970, UTC; those that are none as ``NaT``. Returns: int64 [texts]."""
    import pandas as pd

    dates = pd.to_datetime(pd.Series(texts, dtype=object), format="ISO8601", utc=True, errors="coerce")
    nanoseconds: np.ndarray = pd.DatetimeIndex(dates).as_unit("ns").asi8
    return nanoseconds


def _no_numbers(texts: Sequence[str]) -> dict[int, str]:
    """Texts that are no finite number, by row; an empty text is another matter."""
    bad = {}
    for row, text in enumerate(texts):
        if _INTEGER.fullmatch(text) or not text:
            continue
        try:
            if "_" in text or not math.isfinite(float(text)):
                bad[row] = text
        except ValueError:
            bad[row] = text
    return bad
