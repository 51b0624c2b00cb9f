"""What every table is: rows of values under names, and a count of the lines that cannot be read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.errors import InputError

Row = tuple[int, Sequence[Any]]  # number of the line in the file, from 1, and the values
_HINT = "correct the line, or leave such lines out with --bad-lines=drop"


class Table(ABC):
    """Rows of values under names.

    Attributes:
        file: where they are read from.
        columns: the names.
        lines: records that were read so far.
        dropped: why records were left out so far, and how many.
    """

    def __init__(self, file: Path, columns: Sequence[str], drop: bool = False) -> None:
        self.file = file
        self.columns = tuple(columns)
        self.lines = 0
        self.dropped: Counter[str] = Counter()
        self._drop = drop

    @abstractmethod
    def rows(self, progress: bool = False) -> Generator[Row, None, None]:
        """The rows in the order of the file.

        Raises:
            InputError: the file cannot be read; or a line cannot, and such lines are not left out.
        """

    def index(self, column: str) -> int:
        """At which index a row holds a column.

        Raises:
            InputError: there is none of this name.
        """
        if column not in self.columns:
            message = (
                f"{self.file.name} has no column '{column}' (it has {', '.join(self.columns)}); rename it in the file"
            )
            raise InputError("", message, kind="data")
        return self.columns.index(column)

    def notes(self) -> list[str]:
        """What a reader should know of how the rows were read."""
        return []

    def bad(self, number: int, problem: str) -> None:
        """Count a line that cannot be read, or refuse the file."""
        if not self._drop:
            raise InputError("", f"{self.file.name}, line {number}: {problem}; {_HINT}", kind="data")
        self.dropped[problem.partition(" '")[0].partition(", not")[0]] += 1
