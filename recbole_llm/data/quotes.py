"""Splitting of a line into fields: by the separator alone, or with CSV quoting."""

from __future__ import annotations

import csv
from collections.abc import Iterable

from recbole_llm.errors import InputError

QUOTE = '"'
UNBALANCED = "has a quote that does not close where its field ends"


class CsvLines:
    r"""Splits lines whose fields may be quoted: ``"a ""b"" c"`` is ``a "b" c``, separators inside are text.

    A row is one line. A quoted field that goes on in the next line would swallow rows wherever a quote is part of a
    value (``"Heroes`` in one title and ``Ruler 12"`` in another), so it is refused.

    Args:
        separator: what parts the fields, one character.

    Raises:
        InputError: the separator has several characters.

    Example:
        >>> CsvLines(",").split('7,"Heroes, all",""')
        ['7', 'Heroes, all', '']
        >>> CsvLines(",").split('7,"Heroes') is None
        True
    """

    def __init__(self, separator: str) -> None:
        if len(separator) != 1 or separator == QUOTE:
            message = f"csv needs a field_separator of one character, and it is '{separator}'"
            raise InputError("quoting", message, kind="conflict")
        self._separator = separator

    def split(self, line: str) -> list[str] | None:
        """The fields of a line; None if a quote does not close where its field ends."""
        if QUOTE not in line:
            return line.split(self._separator)
        try:
            return next(csv.reader([line], delimiter=self._separator, strict=True), [""])
        except csv.Error:
            return None

    def is_lossless(self, lines: Iterable[str], width: int) -> tuple[bool, int]:
        """Whether CSV quoting reads every line whole, and some line has a field in quotes.

        Args:
            lines: all lines, the header first.
            width: number of fields that each must have.

        Returns:
            The answer; and the line that decides it, counted from 1: the first that is quoted or the first that would
            not be whole, 0 where no line has a quote.
        """
        quoted = 0
        for number, line in enumerate(lines, start=1):
            if QUOTE not in line:
                continue
            fields = self.split(line)
            if fields is None or len(fields) != width:
                return False, number
            if not quoted and fields != line.split(self._separator):
                quoted = number
        return quoted > 0, quoted
