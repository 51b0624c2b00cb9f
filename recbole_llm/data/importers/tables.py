"""Tables of every kind as rows of values: separated text, one JSON object per line, Parquet."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from recbole_llm.data.importers.delimited import Delimited, DelimitedTable
from recbole_llm.data.importers.files import opened, text_lines
from recbole_llm.data.importers.table import Row, Table
from recbole_llm.errors import InputError

__all__ = ["Delimited", "DelimitedTable", "JsonTable", "ParquetTable", "Row", "Table", "records"]
_BATCH = 65_536  # rows of Parquet read at a time

Picker = Callable[[Mapping[str, Any]], Iterable[Sequence[Any]]]


class JsonTable(Table):
    """One object per line, JSON or a Python literal (older public files), each giving rows.

    Args:
        file: the file.
        columns: names of the values that ``pick`` gives.
        pick: rows of an object; by default one, of the values of these names.
        drop: whether lines that cannot be read are left out and counted.
        encoding: encoding of the text.
    """

    def __init__(
        self,
        file: Path,
        columns: Sequence[str],
        pick: Picker | None = None,
        drop: bool = False,
        encoding: str = "utf-8",
    ) -> None:
        super().__init__(file, columns, drop)
        self._pick = pick or (lambda record: [[record.get(name) for name in self.columns]])
        self._encoding = encoding

    def rows(self, progress: bool = False) -> Generator[Row, None, None]:
        """See :class:`Table`."""
        with closing(records(self.file, self._encoding, progress)) as found:
            for number, record in found:
                if isinstance(record, str):
                    self.lines += 1
                    self.bad(number, record)
                    continue
                picked = list(self._pick(record))
                self.lines += len(picked)
                for row in picked:
                    yield number, row


def records(
    file: Path, encoding: str = "utf-8", progress: bool = False
) -> Generator[tuple[int, Mapping[str, Any] | str], None, None]:
    """The objects of a file with one on each line, and their lines; what is wrong with a line in words."""
    with closing(text_lines(file, encoding, progress)) as lines:
        for number, line in lines:
            if line.strip():
                yield number, _object(line)


def _object(line: str) -> Mapping[str, Any] | str:
    try:
        found = json.loads(line)
    except ValueError as error:
        found, problem = _literal(line), f"no valid JSON: {' '.join(str(error).split())}"
    else:
        problem = "no JSON object"
    if not isinstance(found, dict) and line.lstrip().startswith("["):
        problem = "no JSON object but an array"
    return found if isinstance(found, dict) else problem


def _literal(line: str) -> Any:
    """A Python literal, as some older files hold instead of JSON; None if it is not one."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


class ParquetTable(Table):
    """A Parquet file, read in batches.

    Args:
        file: the file.

    Raises:
        InputError: pyarrow is not installed, or the file is no Parquet.
    """

    def __init__(self, file: Path) -> None:
        self._parquet = _open_parquet(file)
        super().__init__(file, self._parquet.schema_arrow.names)

    def rows(self, progress: bool = False) -> Generator[Row, None, None]:
        """See :class:`Table`."""
        with opened(self.file, progress) as (_, bar):
            total = self._parquet.metadata.num_rows or 1
            for batch in self._parquet.iter_batches(_BATCH, columns=list(self.columns)):
                values = [batch.column(name).to_pylist() for name in self.columns]
                for row in zip(*values, strict=True):
                    self.lines += 1
                    yield self.lines, row
                bar.update(int(bar.total * self.lines / total) - bar.n)


def _open_parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        message = f"{file.name} is Parquet, which pyarrow reads: pip install 'recbole-llm[parquet]'"
        raise InputError("", message, kind="environment") from error
    try:
        return parquet.ParquetFile(file)
    except (ArrowException, OSError) as error:
        message = f"cannot read {file}: {' '.join(str(error).split())[:200]}"
        raise InputError("", message, kind="file") from error
