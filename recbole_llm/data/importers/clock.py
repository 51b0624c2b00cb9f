"""Times in imported files, as seconds since 1970 or as plain numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from itertools import product
from typing import Any

import numpy as np

from recbole_llm.errors import InputError

ORDER = "order"  # instead of a column: the order of the lines stands for the time
ISO, NUMBER = "iso", "number"
OF_A_UNIT = "a time in "  # how the reason begins why a line is left out
# Forms in which people and spreadsheets write dates, with or without a time of day.
_DAYS = ("%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%Y/%m/%d", "%m/%d/%y", "%d %b %Y", "%b %d, %Y", "%B %d, %Y")
_HOURS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_DATED = 6.3e8, 4.2e9  # seconds from 1990 to 2103; other numbers tell no unit: counts, time since a start, old dates
_LIMITS = {1e11: 1.0, 1e14: 1e-3, 1e17: 1e-6}  # numbers below the limit are of the unit, in seconds
_UNITS = {1.0: "seconds", 1e-3: "milliseconds", 1e-6: "microseconds", 1e-9: "nanoseconds"}
_ROUNDED = re.compile(r"\d(\.\d{1,5})?[eE]\+?\d+")  # as spreadsheets show a large number
_UNREAD = "has a time that cannot be read"
_RANGE = "from 1678 to 2261"  # the years of nanoseconds in 64 bits
_YEAR, _DAY = re.compile(r"\d{4}"), re.compile(r"\d{8}")
_NOT_A_TIME = np.iinfo(np.int64).min  # pandas' NaT


class Clock:
    """Reads a column of times, block by block; where the format is open, the first value decides.

    Args:
        form: ``number``, ``iso``, or a format of :meth:`datetime.datetime.strptime`; None: number or iso.

    Example:
        >>> Clock().read(["1700000000", "1700000060"])[0].tolist()
        [1700000000, 1700000060]
        >>> Clock("%m/%d/%Y %I:%M:%S %p").read(["11/15/2019 8:55:22 AM"])[0].tolist()
        [1573808122]
    """

    def __init__(self, form: str | None = None) -> None:
        self._form = form
        self._is_told = form is not None
        self._example = ""
        self._unit: tuple[float, str] | None = None  # of the first number that has one, and that number

    def read(self, values: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
        """Times of a block: int64 where all are whole numbers or seconds, else float64; dates are UTC unless they say.

        Returns:
            The times, 0 where one cannot be read, and what is wrong with these, by row.
        """
        wrong = {row: "has no time" for row, value in enumerate(values) if value is None or value == ""}
        first = next((value for row, value in enumerate(values) if row not in wrong), None)
        if first is None:
            return np.zeros(len(values), dtype=np.int64), wrong
        self._example = self._example or str(first)
        if self._form is None:
            self._form = NUMBER if _is_number(first) else ISO
        times, more = (_read_numbers if self._form == NUMBER else self._read_dates)(values)
        if self._form == NUMBER and not self._is_told:
            more |= self._of_other_units(values, times)
        return times, {**more, **wrong}

    @property
    def is_dated(self) -> bool:
        """Whether times are dates, given as seconds since 1970."""
        return self._form not in (None, NUMBER)

    def notes(self) -> list[str]:
        """What a reader should know of how times were read."""
        if self._form == NUMBER and not self._is_told and re.fullmatch(r"(19|20)\d{6}", self._example):
            return [f"times are numbers such as {self._example}; if these are dates, add --time-format=%Y%m%d"]
        if self._form == NUMBER and _ROUNDED.fullmatch(self._example):
            return [
                f"times are numbers such as {self._example}, of few digits: if a spreadsheet rounded them, export anew"
            ]
        if not self.is_dated:
            return []
        return [f"times are dates ('{self._example}'), written as seconds since 1970, UTC"]

    def _of_other_units(self, values: Sequence[Any], times: np.ndarray) -> dict[int, str]:
        """What is wrong with numbers that are of another unit than the first: sorted together, their order is wrong."""
        bounds = [bound / unit for unit in _UNITS for bound in _DATED]
        places = np.searchsorted(bounds, times, side="right")
        units = np.array([unit for own in _UNITS for unit in (0.0, own)] + [0.0])[places]
        having = np.flatnonzero(units)
        if not having.size:
            return {}
        if self._unit is None:
            self._unit = float(units[having[0]]), str(values[having[0]])
        unit, first = self._unit
        after = (
            f"where the first are in {_UNITS[unit]} ('{first}'); write all in one unit, or take the numbers as they are"
        )
        return {
            row: f"has {OF_A_UNIT}{_UNITS[float(units[row])]} '{values[row]}', {after} with --time-format=number"
            for row in having[units[having] != unit].tolist()
        }

    def _read_dates(self, values: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
        nanoseconds = to_nanoseconds([str(value) for value in values], self._form)
        bad = np.flatnonzero(nanoseconds == _NOT_A_TIME)
        like = "an ISO date such as 2024-05-31 18:30:00" if self._form == ISO else f"of the format {self._form}"
        if bad.size and not self._is_told and (forms := usual_formats(str(values[bad[0]]))):
            like += "; where all are written so, add --time-format=" + " or ".join(f"'{form}'" for form in forms)
        wrong = {}
        for row in bad.tolist():
            beyond = _is_beyond(str(values[row]), self._form)
            why = (
                f"has a time out of range '{values[row]}', times are {_RANGE}"
                if beyond
                else f"{_UNREAD} '{values[row]}', not {like}"
            )
            wrong[row] = why
        nanoseconds[bad] = 0
        whole = nanoseconds % 1_000_000_000 == 0
        return nanoseconds // 1_000_000_000 if whole.all() else nanoseconds / 1e9, wrong


def usual_formats(text: str) -> list[str]:
    """The usual formats in which a text is a date; day and month may be told apart in neither.

    Example:
        >>> usual_formats("31.12.2023 14:00"), usual_formats("1/2/2024"), usual_formats("soon")
        (['%d.%m.%Y %H:%M'], ['%m/%d/%Y', '%d/%m/%Y'], [])
    """
    return [day + hour for day, hour in product(_DAYS, _HOURS) if _is_date(text, day + hour)]


def _is_date(text: str, form: str) -> bool:
    try:
        datetime.strptime(text, form)
    except ValueError:
        return False
    return True


def _is_beyond(text: str, form: str | None) -> bool:
    """Whether a text that was not read is a date nonetheless, of a year that times cannot have."""
    if form not in (None, ISO):
        return _is_date(text, str(form))
    year = re.match(r"\s*([+-]?\d{4,})-\d\d|(\d{4})(\d{4})?$", text)
    return year is not None and not 1678 <= int(year.group(1) or year.group(2)) <= 2261


def to_nanoseconds(texts: list[str], form: str | None) -> np.ndarray:
    """Dates in nanoseconds since 1970, UTC. Returns: int64 [texts], the least number where one cannot be read."""
    import pandas as pd

    layout = "ISO8601" if form in (None, ISO) else form
    try:
        dates = pd.to_datetime(pd.Series(texts, dtype=object), format=layout, utc=True, errors="coerce")
    except ValueError as error:
        raise InputError("time_format", f"'{form}' is no format of dates: {error}") from error
    nanoseconds: np.ndarray = pd.DatetimeIndex(dates).as_unit("ns").asi8.copy()
    nanoseconds[[not any(sign.isdigit() for sign in text) for text in texts]] = (
        _NOT_A_TIME  # pandas knows now and today
    )
    return nanoseconds


def parse_moment(key: str, text: str, dated: bool = True) -> tuple[float, bool]:
    """A bound such as ``--since=2019-01-01``.

    Args:
        key: its setting.
        text: it.
        dated: whether the times of the file are dates: then a number is a year or a day, and none else stands for
            itself.

    Returns:
        It, and whether it is a date, in seconds since 1970.

    Raises:
        InputError: it is neither a date nor a number, or one that the times cannot be compared with.

    Example:
        >>> parse_moment("since", "2024"), parse_moment("since", "20240102"), parse_moment("since", "2024", dated=False)
        ((1704067200.0, True), (1704153600.0, True), (2024.0, False))
    """
    if _is_number(text):
        if not dated:
            return float(text), False
        if not (_YEAR.fullmatch(text) or _DAY.fullmatch(text)):
            message = f"the times are dates, '{text}' is a number; give a date like 2019-01-31, or a year"
            raise InputError(key, message, kind="conflict")
    (nanoseconds,) = to_nanoseconds([text], ISO)
    if nanoseconds == _NOT_A_TIME:
        if _is_beyond(text, ISO):
            raise InputError(key, f"'{text}' is out of range; give a date {_RANGE}, or leave it out")
        raise InputError(key, f"'{text}' is no time; give a date like 2019-01-31, or a number in the unit of the file")
    return float(nanoseconds) / 1e9, True


def seconds_per_unit(times: np.ndarray) -> float:
    """How many seconds a unit of times since 1970 is, told by their size: 1, or 1e-3, 1e-6, 1e-9."""
    largest = float(np.abs(times).max(initial=0))
    return next((unit for limit, unit in _LIMITS.items() if largest < limit), 1e-9)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and "_" not in str(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _read_numbers(values: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
    try:
        if not any(isinstance(value, bool | float) for value in values):
            return np.array([_whole(value) for value in values], dtype=np.int64), {}
    except (TypeError, ValueError, OverflowError):
        pass
    wrong = {
        row: f"{_UNREAD} '{value}'"
        for row, value in enumerate(values)
        if not _is_number(value) or abs(float(value)) >= 2**63
    }
    times = np.array([0.0 if row in wrong else float(value) for row, value in enumerate(values)])
    whole = not (times % 1).any() and np.abs(times).max(initial=0) < 2**53
    return times.astype(np.int64) if whole else times, wrong


def _whole(value: Any) -> int:
    if isinstance(value, str) and "_" in value:
        raise ValueError(value)
    return int(value)
