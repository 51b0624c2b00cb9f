"""Lines of an atomic file: encoding, fields, header."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

from recbole_llm.data.quotes import UNBALANCED, CsvLines
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError


@dataclass(frozen=True)
class Format:
    """How the atomic files of a data set are written.

    Attributes:
        separator: what parts the fields of a line.
        seq_separator: what parts the entries of a sequence; None for any white space.
        encoding: name of the text encoding; a byte order mark is skipped.
        bad_lines: ``error`` or ``drop``, what becomes of a line that cannot be read.
        quoting: ``none``; ``csv``, quotes around a field are taken off; ``auto``, that if it loses nothing.
    """

    separator: str = "\t"
    seq_separator: str | None = " "
    encoding: str = "utf-8"
    bad_lines: str = "error"
    quoting: str = "none"

    @classmethod
    def from_config(cls, config: Settings) -> Format:
        """The format that a config names; ``config`` is any mapping that answers None for what it lacks."""
        return cls(
            (config["field_separator"] or "\t").replace("\\t", "\t"),  # as a shell hands it over
            config["seq_separator"],
            config["encoding"] or "utf-8",
            config["bad_lines"] or "error",
            config["quoting"] or "none",
        )

    def split(self, line: str) -> list[str] | None:
        """The fields of a line; None if a quote does not close where its field ends.

        With ``quoting: auto`` that is for :func:`settle_quoting` to decide; a single line is split as CSV if it can be.
        """
        if self.quoting == "none" or self.quoting == "auto" and len(self.separator) != 1:
            return line.split(self.separator)
        fields = CsvLines(self.separator).split(line)
        return line.split(self.separator) if fields is None and self.quoting == "auto" else fields


def read_header(file: str | Path, form: Format) -> dict[str, str]:
    """Names of a file's columns and their types, in order; a type is "" where the header names none.

    A file is opened once for all checks of a command, and again once it has been written to.

    Raises:
        InputError: the file cannot be read, is empty, or names a column twice.
    """
    file = Path(file)
    try:
        found = file.stat()
    except OSError as error:
        raise InputError("", f"cannot read {file}: {error.strerror}", kind="file") from error
    return dict(_header(file, form, found.st_mtime_ns, found.st_ctime_ns, found.st_size))


@lru_cache(maxsize=256)
def _header(file: Path, form: Format, *_state: int) -> dict[str, str]:
    """The header of a file in a state, which its times and its size tell."""
    return parse_header(file, next(read_lines(file, form), ""), form)


def settle_quoting(file: Path, form: Format) -> tuple[Format, str]:
    """Decide ``quoting: auto`` for a file: ``csv`` if every line is whole under it and some field is quoted.

    Returns:
        The format to read the file by, and the decision in words, "" where no line has a quote.
    """
    if form.quoting != "auto":
        return form, ""
    literal = replace(form, quoting="none")
    if len(form.separator) != 1:
        return literal, ""
    lines = read_lines(file, form)
    header = next(lines, "")
    is_csv, line = CsvLines(form.separator).is_lossless(chain([header], lines), len(form.split(header) or ()))
    if is_csv:
        return replace(form, quoting="csv"), f"{file.name}: quotes around a field are taken off (quoting: auto)"
    note = f"{file.name}: quotes are part of the values (quoting: auto); as csv, line {line} would not be whole"
    return literal, note if line else ""


def read_lines(file: Path, form: Format) -> Iterator[str]:
    r"""The lines of a file without their ends, ``\n`` or ``\r\n``; the first one without a byte order mark.

    Raises:
        InputError: the file cannot be read, or is not text of the encoding.
    """
    try:
        with open(file, encoding=form.encoding, newline="\n") as stream:
            for number, line in enumerate(stream):
                yield (line.removeprefix("\ufeff") if number == 0 else line).rstrip("\r\n")
    except UnicodeError as error:  # beside bytes that cannot be decoded: UTF-16 without its mark
        raise _undecodable(file, form.encoding) from error
    except (LookupError, ValueError) as error:
        raise InputError(
            "encoding", f"there is no encoding '{form.encoding}'; give one like utf-8, latin-1", kind="unknown"
        ) from error
    except OSError as error:
        raise InputError("", f"cannot read {file}: {error.strerror}", kind="file") from error


def _undecodable(file: Path, encoding: str) -> InputError:
    """Where a file stops to be text of an encoding: the stream knows only the offset in its buffer."""
    content = file.read_bytes()
    try:
        content.decode(encoding)
        offset = len(content)
    except UnicodeError as error:
        offset = getattr(error, "start", 0)
    line, other = content.count(b"\n", 0, offset) + 1, "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    other = other or ("latin-1" if encoding.lower().replace("-", "") == "utf8" else "utf-8")
    return InputError(
        "",
        f"{file.name}, line {line}: byte {offset} of the file is no {encoding} text; name the file's encoding, for "
        f"example --encoding={other}",
        kind="file",
    )


def parse_header(file: Path, line: str, form: Format) -> dict[str, str]:
    """Names and types of the columns that the first line names; see :func:`read_header`."""
    if not line.strip():
        raise InputError("", f"{file.name}: line 1 is empty; it must be a header like user_id:token", kind="file")
    if "\r" in line:
        raise InputError(
            "", f"{file.name}, line 1: lines end in carriage returns alone; end them in \\n or \\r\\n", kind="file"
        )
    if "\0" in line:
        message = f"{file.name}, line 1: the header holds NUL characters; name the file's encoding, for example "
        raise InputError("", message + "--encoding=utf-16-le", kind="file")
    if line.startswith("ï»¿"):
        raise InputError(
            "encoding",
            f"{file.name} begins with the mark of UTF-8, and encoding is {form.encoding}; set utf-8",
            kind="conflict",
        )
    fields = form.split(line)
    if fields is None:
        raise InputError("", f"{file.name}, line 1: the header {UNBALANCED}; set quoting: none", kind="file")
    parted = [column.partition(":") for column in fields]
    if not all(name for name, _, _ in parted):
        position = [name for name, _, _ in parted].index("") + 1
        message = f"{file.name}, line 1: column {position} of the header has no name; take the separator beside it off"
        raise InputError("", message, kind="file")
    names = [name for name, _, _ in parted]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        message = f"{file.name}, line 1: the header names column '{twice[0]}' twice; rename one"
        raise InputError("", message, kind="file")
    return {name: kind for name, _, kind in parted}
