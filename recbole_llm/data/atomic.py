r"""The one reader of atomic files: ``.inter``, ``.item``, ``.user``, ``.kg``, ``.link`` and their like.

A file is a header of ``name:type`` and one line per row, its fields parted by ``field_separator``. By default there is
no quoting: what stands between two separators is the value, so ``"Heroes``, ``NA`` and ``null`` are texts like any
other; ``quoting: csv`` takes quotes around a field off. Lines end in ``\n`` or ``\r\n``; blank lines are skipped. A
line that cannot be read as declared is an error that names file and line, or, with ``bad_lines: drop``, left out and
counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.data.lines import Format, parse_header, read_lines, settle_quoting
from recbole_llm.data.quotes import UNBALANCED
from recbole_llm.data.times import TimeReader, Times
from recbole_llm.errors import InputError

TYPES = ("token", "token_seq", "float", "float_seq")
_MISSING_NUMBERS = frozenset("nan na n/a null none <na> #n/a".split())  # in lower case; an empty cell is missing too
_CHUNK = 200_000  # lines converted at a time
_DROP_HINT = "correct the line, or leave such lines out with bad_lines: drop"


@dataclass(frozen=True)
class AtomicFile:
    """What a file holds.

    Attributes:
        types: type of each column that was read, by name, in the order of the file.
        columns: values by name: a list of str for ``token`` ("" where empty), of arrays for the sequences, and float64
            [rows] for ``float`` (NaN where missing).
        line_numbers: int64 [rows], the line of each row in the file; the header is line 1.
        n_lines: lines below the header, blank ones left out.
        dropped: why lines were left out, and how many.
        times: the column of times, if one was asked for.
        note: what ``quoting: auto`` came to, in words; "" where nothing was to be decided.
    """

    types: dict[str, str]
    columns: dict[str, Any]
    line_numbers: np.ndarray
    n_lines: int
    dropped: Counter[str]
    times: Times | None
    note: str = ""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.line_numbers)


def read_atomic(
    file: str | Path,
    form: Format,
    wanted: Collection[str] | None = None,
    required: Collection[str] = (),
    time: str | None = None,
) -> AtomicFile:
    """Read an atomic file.

    Args:
        file: the file.
        form: separator, quotes and encoding of the file.
        wanted: names of the columns to read; None for all. Every line is checked for its number of fields anyway.
        required: columns in which no value may be missing.
        time: column of times; a ``token`` column is read as ISO dates, or as numbers if its first value is one.

    Raises:
        InputError: the file cannot be decoded, its header is wrong, or a line cannot be read (``bad_lines: error``).
    """
    form, note = settle_quoting(Path(file), form)
    return replace(_Reader(Path(file), form, wanted, required, time).read(), note=note)


# ------------------------------------------------------------------------------------------------------- reading


@dataclass
class _Reader:
    """Reads one file, a chunk of lines at a time."""

    file: Path
    form: Format
    wanted: Collection[str] | None
    required: Collection[str]
    time: str | None
    dropped: Counter[str] = field(default_factory=Counter)

    def read(self) -> AtomicFile:
        lines = read_lines(self.file, self.form)
        header = parse_header(self.file, next(lines, ""), self.form)
        types = {name: kind for name, kind in header.items() if self.wanted is None or name in self.wanted}
        self._check_types(types)
        index_of = {name: index for index, name in enumerate(header)}
        times = TimeReader(types[self.time]) if self.time in types else None
        self._texts: dict[str, str] = {}  # equal texts share one object
        parts: dict[str, list[Any]] = {name: [] for name in types}
        kept_numbers, n_lines = [np.empty(0, dtype=np.int64)], 0
        for numbers, cells, width_errors in self._chunks(lines, len(header)):
            values = {name: [row[index_of[name]] for row in cells] for name in types}
            errors = self._empty_cells(values)
            converted = {name: self._convert(types[name], name, values[name], errors) for name in types}
            if times is not None and self.time is not None:
                errors.update({row: text for row, text in times.check(self.time, values[self.time]).items()})
            self._refuse(numbers, errors, width_errors)
            keep = [row for row in range(len(cells)) if row not in errors]
            for name, column in converted.items():
                parts[name].append(column if len(keep) == len(cells) else _rows_of(column, keep))
            if times is not None and self.time is not None:
                times.add([values[self.time][row] for row in keep])
            kept_numbers.append(numbers[keep])
            n_lines += len(cells) + len(width_errors)
        columns = {name: _joined(types[name], part) for name, part in parts.items()}
        found = times.finish() if times is not None else None
        return AtomicFile(types, columns, np.concatenate(kept_numbers), n_lines, self.dropped, found)

    def _check_types(self, types: Mapping[str, str]) -> None:
        for name, kind in types.items():
            if not kind:
                message = (
                    f"{self.file.name}, line 1: column '{name}' has no type; write {name}:token, or :float for numbers"
                )
                raise InputError("", message, kind="file")
            if kind not in TYPES:
                hint = "; for names in quotes set quoting: csv" if kind.endswith('"') else ""
                message = f"{self.file.name}, line 1: column '{name}' has type '{kind}'; choose from {', '.join(TYPES)}"
                raise InputError("", message + hint, kind="file")

    def _chunks(self, lines: Iterator[str], width: int) -> Iterator[tuple[np.ndarray, list[list[str]], dict[int, str]]]:
        """Line numbers and fields of the lines that have as many as the header, and what is wrong with the others."""
        numbered = enumerate(lines, start=2)
        while chunk := list(islice(numbered, _CHUNK)):
            numbers, cells, wrong = [], [], {}
            for number, line in chunk:
                row = self.form.split(line)
                if row is None:
                    wrong[number] = UNBALANCED
                elif len(row) == width and "\0" not in line and (width > 1 or line):
                    numbers.append(number)
                    cells.append(row)
                elif line.strip(" ") or len(row) > 1:
                    wrong[number] = "holds a NUL character" if "\0" in line else _wrong_width(row, width)
            yield np.array(numbers, dtype=np.int64), cells, wrong

    def _empty_cells(self, values: Mapping[str, list[str]]) -> dict[int, str]:
        """Rows that lack a value they must have, and what is wrong with each."""
        errors: dict[int, str] = {}
        for name in dict.fromkeys([*self.required, *([] if self.time is None else [self.time])]):
            if "" in values.get(name, ()):
                errors.update({row: f"has no {name}" for row, value in enumerate(values[name]) if not value})
        return errors

    def _convert(self, kind: str, name: str, values: list[str], errors: dict[int, str]) -> Any:
        if name == self.time and kind.startswith("token"):
            return np.zeros(len(values))
        if kind == "token":
            return [self._texts.setdefault(value, value) for value in values]
        if kind == "float":
            numbers = self._numbers(name, values, errors)
            if name in self.required:  # NA is missing as well
                lacking = np.flatnonzero(np.isnan(numbers)).tolist()
                errors.update({row: f"has no {name}" for row in lacking if row not in errors})
            return numbers
        split = [[part for part in value.split(self.form.seq_separator) if part] for value in values]
        if kind == "token_seq":
            return [np.array(row, dtype=str) if row else np.empty(0, dtype="<U1") for row in split]
        return [self._sequence(name, row, number, errors) for number, row in enumerate(split)]

    def _numbers(self, name: str, values: list[str], errors: dict[int, str]) -> np.ndarray:
        try:
            if any("_" in value for value in values):  # Python's digit groups are no numbers in a file
                raise ValueError
            numbers = np.array([float(value) if value else np.nan for value in values], dtype=np.float64)
            if np.isinf(numbers).any():
                raise ValueError
            return numbers
        except ValueError:
            return np.array([self._number(name, value, row, errors) for row, value in enumerate(values)])

    def _number(self, name: str, value: str, row: int, errors: dict[int, str]) -> float:
        try:
            if value and "_" not in value and abs(float(value)) != np.inf:
                return float(value)
        except ValueError:
            pass
        if value.strip().lower() not in _MISSING_NUMBERS and value:
            hint = " (for values in quotes set quoting: csv)" if value[0] == value[-1] == '"' else ""
            errors.setdefault(row, f"column '{name}' holds '{value}', a text that is no number{hint}")
        return float("nan")

    def _sequence(self, name: str, parts: Sequence[str], row: int, errors: dict[int, str]) -> np.ndarray:
        numbers = np.array([self._number(name, part, row, errors) for part in parts], dtype=np.float64)
        if (missing := np.isnan(numbers)).any():  # which no mean fills
            text = parts[int(missing.argmax())]
            errors.setdefault(row, f"column '{name}' holds '{text}' in a sequence of numbers; leave the field empty")
        return numbers

    def _refuse(self, numbers: np.ndarray, errors: Mapping[int, str], width_errors: Mapping[int, str]) -> None:
        """Raise the first error of a chunk, or count all of them."""
        wrong = {**width_errors, **{int(numbers[row]): text for row, text in errors.items()}}
        if wrong and self.form.bad_lines == "error":
            first = min(wrong)
            raise InputError("", f"{self.file.name}, line {first}: {wrong[first]}; {_DROP_HINT}", kind="data")
        self.dropped.update(_reason(text) for text in wrong.values())


def _reason(message: str) -> str:
    """Why lines are dropped, without the value of a single one."""
    if message.startswith("column"):
        return message.partition(" holds ")[0].removeprefix("column ") + " not readable"
    if message == UNBALANCED:
        return "a quote does not close"
    return "wrong number of fields" if " fields, not " in message else message.replace("has no ", "no ", 1)


def _wrong_width(row: Sequence[str], width: int) -> str:
    """What is wrong with a line of too few or too many fields."""
    hint = " (the last is empty: take the separator at the end off)" if len(row) == width + 1 and not row[-1] else ""
    return f"has {len(row)} fields, not {width}{hint}"


def _rows_of(column: Any, keep: Sequence[int]) -> Any:
    return column[list(keep)] if isinstance(column, np.ndarray) else [column[row] for row in keep]


def _joined(kind: str, parts: Iterable[Any]) -> Any:
    parts = list(parts)
    if kind == "float" or parts and isinstance(parts[0], np.ndarray):
        return np.concatenate([np.empty(0), *parts])
    return [value for part in parts for value in part]
