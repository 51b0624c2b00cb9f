"""The plan of an import: the files of a layout, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import Any

from recbole_llm.data.importers.delimited import Delimited
from recbole_llm.data.importers.files import plain_name, refuse_packed
from recbole_llm.data.importers.interactions import Columns
from recbole_llm.data.importers.table import Table
from recbole_llm.data.importers.text import one_line
from recbole_llm.errors import InputError
from recbole_llm.registry import suggestion

ROLES = ("user", "item", "time", "rating", "title")  # what columns may be
QUOTING = ("auto", "csv", "none")
_MOST_FILES = 10_000  # of a folder that is looked through


@dataclass(frozen=True)
class Feature:
    """A column of the ``.item`` file.

    Attributes:
        name: name of the column.
        column: name of its column in the table of items.
        kind: ``token`` or ``token_seq``.
        clean: a value of the table as the value of the atomic file.
    """

    name: str
    column: str
    kind: str = "token"
    clean: Callable[[Any], str] = one_line


@dataclass
class Items:
    """A table of items.

    Attributes:
        table: the table.
        item: column of the id.
        title: column of the title.
        features: what else is taken over.
        clean: a title of the table as a title.
    """

    table: Table
    item: str
    title: str
    features: tuple[Feature, ...] = ()
    clean: Callable[[Any], str] = one_line


@dataclass
class ImportPlan:
    """Which files are imported, and how.

    Attributes:
        layout: name of the layout, for the log.
        interactions: tables of interactions, all of the same columns.
        columns: which of them are what.
        items: tables of items; the interactions may hold titles instead.
        domain: words of the prompt, a file of ``properties/prompt``.
        parts: names of the interactions' tables where they are a split that their authors made: train, valid, test.
        notes: what a reader should know.
        repeats: what becomes of several interactions of a user with an item, unless the user says otherwise.
    """

    layout: str
    interactions: Sequence[Table]
    columns: Columns
    items: Sequence[Items] = ()
    domain: str = "item"
    parts: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    repeats: str = "keep"


@dataclass(frozen=True)
class Choices:
    """What the user says of the files.

    Attributes:
        names: columns by what they are: ``user``, ``item``, ``time``, ``rating``, ``title``.
        texts: columns that describe an item.
        columns: names of the columns of a file without a header.
        items: file of items.
        separator: what parts the fields of a line.
        encoding: encoding of all files.
        quoting: see :class:`recbole_llm.data.importers.delimited.Delimited`.
        time_format: how times are written.
        drop: whether lines that cannot be read are left out and counted.

    Raises:
        InputError: a value that its key does not take.
    """

    names: dict[str, str] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    items: str | Path | None = None
    separator: str | None = None
    encoding: str | None = None
    quoting: str = "auto"
    time_format: str | None = None
    drop: bool = False

    def __post_init__(self) -> None:
        for role in self.names:
            if role not in ROLES:
                raise InputError("names", f"a column is none of '{role}'{suggestion(role, ROLES)}", kind="unknown")
        for key in ("texts", "columns"):
            if isinstance(names := getattr(self, key), str):
                raise InputError(key, f"'{names}' is one text; give a tuple of names")
        if self.quoting not in QUOTING:
            raise InputError("quoting", f"'{self.quoting}' is not allowed; choose one of {', '.join(QUOTING)}")

    def form(
        self, separator: str, encoding: str = "utf-8", quoting: str = "none", escape: str | None = None
    ) -> Delimited:
        """How a layout's file is written, unless the user says otherwise."""
        quoting = self.quoting if self.quoting != "auto" else quoting
        return Delimited(self.separator or separator, quoting, self.encoding or encoding, escape)


def _as_path(key: str, path: object) -> Path:
    if isinstance(path, str | PathLike):
        return Path(path)
    message = f"a {type(path).__name__} is no path; give that of a file (pandas: frame.to_csv('mine.csv', index=False))"
    raise InputError(key, message)


class Origin:
    """The file or folder that is to be imported.

    Args:
        path: it.
        items: the file of items that the user names.

    Raises:
        InputError: there is no such file or folder, nothing in it, or it is packed or a spreadsheet.
    """

    def __init__(self, path: str | Path, items: str | Path | None = None) -> None:
        path, items = _as_path("path", path), None if items is None else _as_path("items", items)
        if not path.exists():
            raise InputError("", f"cannot read {path}: there is no such file or folder", kind="file")
        if items is not None and not items.is_file():
            raise InputError("items", f"cannot read {items}: there is no such file", kind="file")
        for file in (path, items):
            if file is not None and file.is_file():
                refuse_packed(file)
        self.path = path
        self.items = items
        self._beside = sorted(file for file in (path.parent if path.is_file() else path).glob("*") if file.is_file())
        self._given = [path] if path.is_file() else self._in_folder(path)
        if not self._given:
            raise InputError("", f"{path}: the folder holds no files", kind="file")

    @staticmethod
    def _in_folder(folder: Path) -> list[Path]:
        found = (file for pattern in ("*", "*/*") for file in sorted(folder.glob(pattern)) if file.is_file())
        return [file for _, file in zip(range(_MOST_FILES), found, strict=False)]

    def given(self, *patterns: str) -> list[Path]:
        """The files to import whose names fit a pattern, ``.gz`` aside: the given file, or those in the folder."""
        return [file for file in self._given if any(fnmatch(plain_name(file), pattern) for pattern in patterns)]

    def beside(self, *patterns: str) -> list[Path]:
        """The file of items that the user names, or the files beside the given one whose names fit a pattern."""
        if self.items is not None:
            return [self.items]
        files = self._beside if self.path.is_file() else self._given
        return [file for file in files if any(fnmatch(plain_name(file), pattern) for pattern in patterns)]

    def neighbours(self, file: Path) -> list[Path]:
        """All files in the folder of one."""
        return sorted(path for path in file.parent.iterdir() if path.is_file())
