"""Tables of every kind as rows of values: separated text, one JSON object per line, Parquet."""

from __future__ import annotations

import ast
import gzip
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from recbole_llm.data.importers.delimited import Delimited, DelimitedTable
from recbole_llm.data.importers.files import opened, text_lines
from recbole_llm.data.importers.table import Row, Table
from recbole_llm.errors import InputError

__all__ = ["Delimited", "DelimitedTable", "JsonTable", "ParquetTable", "Row", "Table", "records"]
_BATCH = 65_536  # rows of Parquet read at a time
_SHOWN = 5  # names that a note lists

Picker = Callable[[Mapping[str, Any]], Iterable[Sequence[Any]]]


class JsonTable(Table):
    """One object per line, JSON or a Python literal (older public files), each giving rows.

    Args:
        file: the file.
        columns: names of the values that ``pick`` gives.
        pick: rows of an object; by default one, of the values of these names.
        drop: whether lines that cannot be read are left out and counted.
        encoding: encoding of the text.
        known: keys beyond which others are told; None tells none.
    """

    def __init__(
        self,
        file: Path,
        columns: Sequence[str],
        pick: Picker | None = None,
        drop: bool = False,
        encoding: str = "utf-8",
        known: Collection[str] | None = None,
    ) -> None:
        super().__init__(file, columns, drop)
        self._pick = pick or (lambda record: [[record.get(name) for name in self.columns]])
        self._encoding = encoding
        self._known = None if known is None else frozenset(known)
        self._late: dict[str, int] = {}  # other keys, and the line of each one's first object

    def notes(self) -> list[str]:
        """Columns that stood in no object that was looked at before."""
        if not self._late:
            return []
        name, line = next(iter(self._late.items()))
        several = f"columns {', '.join(list(self._late)[:_SHOWN])} are" if len(self._late) > 1 else f"column {name} is"
        return [
            f"{self.file.name}: {several} not taken, as none of the first objects has it (first: line {line}); "
            f"name it to take it, such as --title={name}"
        ]

    def rows(self, progress: bool = False) -> Generator[Row, None, None]:
        """See :class:`Table`."""
        with closing(records(self.file, self._encoding, progress)) as found:
            for number, record in found:
                if isinstance(record, str):
                    self.lines += 1
                    self.bad(number, record)
                    continue
                if self._known is not None and not self._known.issuperset(record):
                    for name in record:
                        if name not in self._known:
                            self._late.setdefault(name, number)
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
        file: the file, gzipped or not.

    Raises:
        InputError: pyarrow is not installed, the file is no Parquet, or two of its columns have one name.
    """

    def __init__(self, file: Path) -> None:
        with _readable(file):
            self._parquet = _open_parquet(file)
            super().__init__(file, self._parquet.schema_arrow.names)
        if twice := [name for name, count in Counter(self.columns).items() if count > 1]:
            raise InputError("", f"{file.name} names column '{twice[0]}' twice; rename one", kind="file")

    def narrow(self, columns: Collection[str]) -> None:
        """Read these columns alone; the others need not be readable."""
        self.columns = tuple(name for name in self.columns if name in columns)

    def rows(self, progress: bool = False) -> Generator[Row, None, None]:
        """See :class:`Table`."""
        with opened(self.file, progress) as (_, bar), _readable(self.file):
            total = self._parquet.metadata.num_rows or 1
            for batch in self._parquet.iter_batches(_BATCH, columns=list(self.columns)):
                values = [_values(batch.column(name)) for name in self.columns]
                for row in zip(*values, strict=True):
                    self.lines += 1
                    yield self.lines, row
                bar.update(int(bar.total * self.lines / total) - bar.n)


def _values(column: Any) -> list[Any]:
    """The values of a column; dates as texts where one is beyond those of Python."""
    try:
        found: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        found = column.cast("string").to_pylist()
    return found


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """What pyarrow says of a file as one line; that it is not installed, too."""
    try:
        from pyarrow import ArrowException  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        message = f"{file.name} is Parquet, which pyarrow reads: pip install 'recbole-llm[parquet]'"
        raise InputError("", message, kind="environment") from error
    try:
        yield
    except InputError:
        raise
    except (ArrowException, OSError, OverflowError, ValueError) as error:
        message = f"cannot read {file}: {' '.join(str(error).split())[:200]}; write it anew, or save it as CSV"
        raise InputError("", message, kind="file") from error


def _open_parquet(file: Path) -> Any:
    """The file; a gzipped one is unpacked into a temporary file, as it is not read from its start to its end."""
    from pyarrow import parquet

    with opened(file) as (source, _):
        if not isinstance(source, gzip.GzipFile):
            return parquet.ParquetFile(file)
        unpacked = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the table)
        shutil.copyfileobj(source, unpacked)
        return parquet.ParquetFile(unpacked)
