"""Separated text, such as CSV, TSV and MovieLens' ``::``: quotes that hold separators and line ends, and stray ones."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from recbole_llm.data.importers.files import text_lines
from recbole_llm.data.importers.table import Row, Table
from recbole_llm.errors import InputError

_LONGEST_RECORD = 10_000  # lines of one quoted field; more are a quote that never closes
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Delimited:
    """How a line is split into fields.

    Attributes:
        separator: one or more characters.
        quoting: ``none``; ``csv``, a field in quotes may hold separators and line ends; ``auto``, csv unless that would
            swallow whole lines.
        encoding: encoding of the text.
        escape: character that takes its meaning from a quote, as in Book-Crossing's files.
    """

    separator: str = ","
    quoting: str = "auto"
    encoding: str = "utf-8"
    escape: str | None = None

    def parse(self, text: str) -> list[str] | None:
        """The fields of a record with quotes; None if a quote is still open at its end.

        Raises:
            ValueError: a quote closes where its field does not end.
        """
        lines = [line + "\n" for line in text.removesuffix("\n").split("\n")]
        reader = csv.reader(lines, delimiter=self.separator, escapechar=self.escape, strict=True)
        try:
            return next(reader, [""])
        except csv.Error as error:
            if "end of data" in str(error):
                return None
            raise ValueError(str(error)) from error

    def split(self, text: str) -> list[str]:
        """The fields of a line without quoting."""
        return text.rstrip("\r\n").split(self.separator)


class DelimitedTable(Table):
    """A file of separated fields, such as CSV or TSV.

    Args:
        file: the file.
        form: how its lines are split into fields.
        columns: names; None where the first line holds them.
        drop: whether lines that cannot be read are left out and counted.
        width: fields of a line, where it is not the number of names.
        skip: lines before the header or the first row.

    Attributes:
        has_header: whether a line of the file holds the names.
    """

    # Numbers of the first line of a kind, 0 for none: with quotes of CSV; with quotes that were read as text although
    # there is CSV quoting; with a field that holds what could be rows.
    _quoted = _literal = _swallowing = 0
    _quoted_header = False

    def __init__(
        self,
        file: Path,
        form: Delimited,
        columns: Sequence[str] | None = None,
        drop: bool = False,
        width: int = 0,
        skip: int = 0,
    ) -> None:
        self.file, self.form, self._skip = file, form, skip
        self.has_header = columns is None
        super().__init__(file, self._read_header() if columns is None else columns, drop)
        self._width = width or len(self.columns)

    def _read_header(self) -> list[str]:
        for number, line in islice(text_lines(self.file, self.form.encoding), self._skip, None):
            literal = self.form.quoting == "none" or '"' not in line
            self._quoted_header = not literal
            fields = self.form.split(line) if literal else self._safely_parsed(line)
            if fields is None:
                message = f"{self.file.name}, line {number}: a quote of the header does not close"
                raise InputError("", message, kind="file")
            names = [name.strip() for name in fields]
            if twice := [name for name, count in Counter(names).items() if name and count > 1]:
                message = f"{self.file.name}, line {number}: the header names column '{twice[0]}' twice; rename one"
                raise InputError("", message, kind="file")
            return names
        raise InputError("", f"{self.file.name}: is empty; it needs a line of column names", kind="file")

    def _safely_parsed(self, text: str) -> list[str] | None:
        try:
            return self.form.parse(text)
        except ValueError:
            return None

    def rows(self, progress: bool = False) -> Generator[Row, None, None]:
        """See :class:`Table`."""
        with closing(text_lines(self.file, self.form.encoding, progress)) as lines:
            yield from self._rows(islice(lines, self._skip + self.has_header, None))

    def notes(self) -> list[str]:
        """How quotes were read, where ``quoting`` left it open."""
        if self.form.quoting != "auto":
            return []
        found, name = [], self.file.name
        if self._quoted and self.form.separator == "\t":  # whose files are mostly written without quoting
            found.append(f"{name}: quotes are those of CSV (first: line {self._quoted}); --quoting=none keeps them")
        if self._literal:
            found.append(
                f"{name}: quotes are text where they are no CSV (first: line {self._literal}); --quoting=csv or none "
                "decides it for all lines"
            )
        if self._swallowing:
            found.append(
                f"{name}: a quoted field holds lines that could be rows (first: line {self._swallowing}), as the whole "
                "file is CSV; --quoting=none reads each line as a row"
            )
        return found

    def _rows(self, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
        literal = self.form.quoting == "none"
        aside = ""
        if self.form.quoting == "auto" and self.form.separator == "\t" and not self._quoted_header and self._no_csv:
            # Files of tabs are mostly written without quoting, so that one such line tells of all.
            literal, self._literal = True, self._no_csv
            aside = ", with quotes as text (--quoting=csv reads them as CSV)"
        waiting: list[tuple[int, str]] = []  # lines that were looked at and are still to be read
        while True:
            number, line = waiting.pop(0) if waiting else next(lines, (0, ""))
            if not number:
                return
            fields = self.form.split(line) if literal or '"' not in line else self._record(number, line, lines, waiting)
            if fields is None or len(fields) == 1 and not fields[0].strip():
                continue  # counted already, or a blank line
            self.lines += 1
            if len(fields) == self._width:
                yield number, fields
            else:
                self.bad(number, f"has {len(fields)} fields, not {self._width}{aside}")

    def _record(
        self, number: int, line: str, lines: Iterator[tuple[int, str]], waiting: list[tuple[int, str]]
    ) -> list[str] | None:
        """The fields of a record that begins with a line that has a quote, which may go on in further lines."""
        try:
            fields = self.form.parse(line)
        except ValueError:
            return self._as_text(number, line, "a quote that does not close where its field ends")
        if fields is not None:
            self._note_quotes(number, line, fields)
            return fields
        more: list[tuple[int, str]] = []
        text = line
        while len(more) < _LONGEST_RECORD:
            following = waiting.pop(0) if waiting else next(lines, None)
            if following is None:
                break
            more.append(following)
            text += following[1]
            if '"' not in following[1]:
                continue
            try:
                fields = self.form.parse(text)
            except ValueError:  # a quote closed inside a field; no further line can make that right
                break
            if fields is not None:
                break
        # A line that is whole as it stands, before others that are: a stray quote, which would swallow them.
        whole = len(self.form.split(line)) == self._width
        stray = whole and any(len(self.form.split(other)) == self._width for _, other in more)
        if fields is not None and (not stray or self.form.quoting == "csv" or not self._no_csv):
            self._swallowing = self._swallowing or number * stray
            self._note_quotes(number, line, fields)
            return fields
        waiting[:0] = more
        return self._as_text(number, line, "a quote that does not close")

    def _note_quotes(self, number: int, line: str, fields: list[str]) -> None:
        if not self._quoted and fields != self.form.split(line):
            self._quoted = number

    @cached_property
    def _no_csv(self) -> int:
        """Number of the first line with quotes that no writer of CSV leaves there; 0 if all of the file is CSV."""
        separator = re.escape(self.form.separator)
        quoted = r'"[^"]*(?:""[^"]*)*'
        field = rf'(?:[^"{separator}]*|{quoted}")'
        record = re.compile(rf"(?:{field}{separator})*(?:{field}|(?P<open>{quoted}))")
        begun = 0  # the line in which a field that is still open begins
        with closing(text_lines(self.file, self.form.encoding)) as lines:
            for number, line in islice(lines, self._skip, None):
                if begun and number - begun > _LONGEST_RECORD:
                    return begun
                if '"' in line:
                    found = record.fullmatch('"' * bool(begun) + line.rstrip("\r\n"))
                    if found is None:
                        return begun or number
                    begun = (begun or number) if found["open"] else 0
        return begun

    def _as_text(self, number: int, line: str, problem: str) -> list[str] | None:
        """A line whose quotes are no CSV: as it stands, if it is whole so and ``quoting`` leaves it open."""
        fields = self.form.split(line)
        if self.form.quoting == "auto" and len(fields) == self._width:
            self._literal = self._literal or number
            return fields
        self.lines += 1
        self.bad(number, f"has {problem}")
        return None
