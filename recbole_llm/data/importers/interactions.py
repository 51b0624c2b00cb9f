"""Interactions during an import: numbers for users and items, times, counts of what is left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Any

import numpy as np

from recbole_llm.data.importers.clock import OF_A_UNIT, ORDER, Clock
from recbole_llm.data.importers.table import Table
from recbole_llm.data.importers.text import READ_AS_MISSING, has_object, one_line
from recbole_llm.data.importers.titles import Titles
from recbole_llm.errors import InputError

_BLOCK = 20_000  # rows converted at a time
_FEW = 10  # interactions of which nothing is told
_SHOWN = 3  # items that a note names
_NOT_IN_AN_ID = {"\t": "a tab", "\n": "a line end", "\r": "a line end", "\0": "a NUL character"}


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what.

    Attributes:
        user: column of the user.
        item: column of the item.
        time: column of the time; ``order`` where the order of the lines stands for it.
        rating: column of the rating, if there is one.
        title: column of the item's title, if the interactions hold it.
        texts: further columns that describe the item.
        time_format: how times are written, see :class:`recbole_llm.data.importers.clock.Clock`.
    """

    user: str
    item: str
    time: str = ORDER
    rating: str | None = None
    title: str | None = None
    texts: tuple[str, ...] = ()
    time_format: str | None = None


@dataclass
class Interactions:
    """Interactions in the order of their files, or a part of them.

    Attributes:
        users: their ids, by number.
        items: their ids, by number.
        user: int32 [interactions], number of each one's user.
        item: int32 [interactions], number of each one's item.
        rating: float64 [interactions], NaN if there is none; None where no table has any.
        time: int64 or float64 [interactions].
        part: int8 [interactions], the file that each is from.
        titles: titles of the items, by number, with the texts that describe each, where the interactions hold them;
            empty where no line has one.
        lines: records that were read.
        dropped: why records were left out, and how many.
        notes: what else a reader should know.
        dated: whether the times are dates, in seconds since 1970.
    """

    users: list[str]
    items: list[str]
    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray | None
    time: np.ndarray
    part: np.ndarray
    titles: dict[int, tuple[str, ...]] = field(default_factory=dict)
    lines: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    dated: bool = False

    def __len__(self) -> int:
        """Number of interactions."""
        return len(self.user)

    def keep(self, chosen: np.ndarray, reason: str) -> None:
        """Keep some interactions and count the others.

        Args:
            chosen: bool [interactions], or int [kept], their positions in the new order.
            reason: why the others are left out.
        """
        before = len(self)
        self.user, self.item, self.time, self.part = (
            column[chosen] for column in (self.user, self.item, self.time, self.part)
        )
        self.rating = None if self.rating is None else self.rating[chosen]
        if before > len(self):
            self.dropped[reason] += before - len(self)


def read_interactions(
    tables: Sequence[Table], columns: Columns, drop: bool = False, progress: bool = False
) -> Interactions:
    """Read interactions, a block of rows at a time: what is held are numbers, and every id once.

    Args:
        tables: they are read one after the other, and have the same columns.
        columns: which ones are what.
        drop: whether rows without a user, an item or a readable time are left out and counted.
        progress: whether to show progress bars.

    Raises:
        InputError: a line cannot be read, or there are no interactions.
    """
    reader = _Reader(columns, drop)
    for number, table in enumerate(tables):
        reader.read(table, number, progress)
    return reader.finish(tables)


class _Reader:
    def __init__(self, columns: Columns, drop: bool) -> None:
        self._columns = columns
        self._drop = drop
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._clock = Clock(columns.time_format)
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._titles: Titles[int] = Titles([one_line] * (1 + len(columns.texts)))
        self._dropped: Counter[str] = Counter()
        self._n_rows = 0

    def read(self, table: Table, part: int, progress: bool) -> None:
        """Take over the rows of a table."""
        names = [self._columns.user, self._columns.item, self._columns.rating, self._columns.time]
        indices = [None if name is None or name == ORDER else table.index(name) for name in names]
        about = [table.index(name) for name in (self._columns.title, *self._columns.texts) if name]
        with closing(table.rows(progress)) as rows:
            for block in _blocks(rows):
                self._read_block(table, part, block, indices, about)

    def _read_block(
        self,
        table: Table,
        part: int,
        block: list[tuple[int, Sequence[Any]]],
        indices: list[int | None],
        about: list[int],
    ) -> None:
        at_user, at_item, at_rating, at_time = indices
        assert at_user is not None and at_item is not None
        rows = [row for _, row in block]
        users, items = [id_text(row[at_user]) for row in rows], [id_text(row[at_item]) for row in rows]
        wrong = {row: OBJECT for at in about for row, values in enumerate(rows) if has_object(values[at])}
        for what, ids in (("item", items), ("user", users)):
            # Most ids are plain, which one call tells.
            odd = (row for row, text in enumerate(ids) if " " in text or not text or not text.isprintable())
            wrong.update({row: problem for row in odd if (problem := wrong_id(what, ids[row]))})
        if at_time is None:
            times = np.arange(self._n_rows, self._n_rows + len(rows))
        else:
            times, unreadable = self._clock.read([row[at_time] for row in rows])
            wrong.update(unreadable)
        ratings = np.full(len(rows), np.nan)
        if at_rating is not None:
            ratings, unreadable = _numbers([row[at_rating] for row in rows])
            wrong.update(unreadable)
        self._n_rows += len(rows)
        self._refuse(table, block, wrong)
        kept = [row for row in range(len(rows)) if row not in wrong] if wrong else range(len(rows))
        user = _numbered(self._users, users, kept)
        item = _numbered(self._items, items, kept)
        chosen = np.array(kept, dtype=np.int64) if wrong else slice(None)
        self._parts.append((user, item, ratings[chosen], times[chosen], np.full(len(user), part, dtype=np.int8)))
        if about:
            for row, number in zip(kept, item.tolist(), strict=True):
                self._titles.add(number, tuple(rows[row][index] for index in about))

    def _refuse(self, table: Table, block: list[tuple[int, Sequence[Any]]], wrong: dict[int, str]) -> None:
        if wrong and not self._drop:
            first = min(wrong)
            problem = f"{table.file.name}, line {block[first][0]}: {wrong[first]}"
            message = f"{problem}; correct the line, or leave such lines out with --bad-lines=drop"
            raise InputError("", message, kind="data")
        self._dropped.update(text.partition(" '")[0].removeprefix("has ") for text in wrong.values())

    def _check_unit(self, tables: Sequence[Table]) -> None:
        """Refuse to leave out most lines because the first one's time is of another unit."""
        other = sum(count for what, count in self._dropped.items() if what.startswith(OF_A_UNIT))
        if other > (kept := sum(len(part[0]) for part in self._parts)):
            message = (
                f"{', '.join(table.file.name for table in tables)}: {other:,} times are of another unit than the "
                f"first, {kept:,} are of its unit; write all in one unit, or take the numbers as they are with "
                "--time-format=number"
            )
            raise InputError("", message, kind="data")

    def finish(self, tables: Sequence[Table]) -> Interactions:
        """All that was read."""
        dropped = sum((table.dropped for table in tables), Counter()) + self._dropped
        if not self._parts or not sum(len(part[0]) for part in self._parts):
            names = ", ".join(table.file.name for table in tables)
            raise InputError("", f"{names}: holds no interactions", kind="data")
        self._check_unit(tables)
        user, item, rating, time, part = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        self._parts.clear()
        notes = [note for table in tables for note in table.notes()]
        items = list(self._items)
        notes += self._titles.notes(items.__getitem__)
        if self._columns.time != ORDER:
            notes += _equal_times(time)
        has_rating = self._columns.rating is not None
        return Interactions(
            list(self._users),
            items,
            user,
            item,
            rating if has_rating else None,
            time,
            part,
            self._titles.found,
            sum(table.lines for table in tables),
            dropped,
            notes + self._clock.notes(),
            self._clock.is_dated,
        )


def _equal_times(times: np.ndarray) -> list[str]:
    """A note where most interactions have one time: their order is that of the lines."""
    known, counts = np.unique(times, return_counts=True)
    most = int(counts.argmax())
    if counts[most] * 2 <= len(times) or len(times) < _FEW:
        return []
    many = f"{counts[most]:,} of {len(times):,} interactions have the same time, {known[most].item()!r}"
    return [f"{many}: the order of the lines stands for theirs; a spreadsheet may have rounded them"]


def _blocks(rows: Iterator[tuple[int, Sequence[Any]]]) -> Iterator[list[tuple[int, Sequence[Any]]]]:
    while block := list(islice(rows, _BLOCK)):
        yield block


OBJECT = "has an object in the place of a title or text"
NO_ID = "\0object"  # stands for what is no id at all; an id with it is refused


def wrong_id(what: str, text: str) -> str:
    """What is wrong with an id; "" if nothing is."""
    if not text or text.isspace():
        return f"has no {what}"
    if text == NO_ID:
        return f"has a list or an object in the place of the {what}'s id"
    marks = (name for mark, name in _NOT_IN_AN_ID.items() if mark in text)
    return f"has an id with {mark} in it" if (mark := next(marks, "")) else ""


def shown_items(items: Sequence[str]) -> str:
    """Their number and the first of them."""
    some = ", ".join(f"'{item}'" for item in items[:_SHOWN])
    return f"{len(items):,} items (first: {some})" if len(items) > 1 else f"item {some}"


def id_text(value: Any) -> str:
    """An id as text: a whole number is the same however a file stores it; blanks around a text are its own."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | dict | tuple):
        return NO_ID
    if value is None or isinstance(value, float | Decimal) and value != value:
        return ""
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def _numbered(known: dict[str, int], ids: list[str], kept: Sequence[int]) -> np.ndarray:
    """Numbers of ids, by first appearance. Returns: int32 [kept]."""
    return np.fromiter((known.setdefault(ids[row], len(known)) for row in kept), dtype=np.int32, count=len(kept))


def _numbers(values: list[Any]) -> tuple[np.ndarray, dict[int, str]]:
    """Ratings, NaN if there is none. Returns: float64 [values], and what is wrong with some of them by row."""
    wrong = {}
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if value is None or isinstance(value, str) and (value == "" or value in READ_AS_MISSING):
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("inf")
        if abs(number) == float("inf") or isinstance(value, str) and "_" in value:
            wrong[row] = f"has a rating that is no number '{value}'"
        found[row] = number
    return found, wrong
