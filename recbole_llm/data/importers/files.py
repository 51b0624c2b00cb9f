"""Reading of imported files: gzipped or not, in any text encoding, with a progress bar."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from recbole_llm.errors import InputError
from recbole_llm.progress import Bar

_STEP = 50_000  # lines between two steps of the progress bar
_GZIP_MARK = b"\x1f\x8b"
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# First bytes of files that are no text, whatever their names say.
_PACKED = {
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "a spreadsheet; save the sheet as CSV in UTF-8",
    b"BZh": "packed by bzip2; unpack it",
    b"\xfd7zXZ": "packed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it",
}


@contextmanager
def opened(file: Path, progress: bool = False) -> Iterator[tuple[IO[bytes], Bar]]:
    """A file, unpacked if it is gzipped, and a progress bar over the bytes on disk, shown on a terminal only.

    Raises:
        InputError: it cannot be read, or its end is missing.
    """
    try:
        raw = open(file, "rb")
    except OSError as error:
        raise InputError("", f"cannot read {file}: {error.strerror}", kind="file") from error
    size = os.fstat(raw.fileno()).st_size
    with raw, Bar(total=size, desc=file.name, unit="B", unit_scale=True, disable=None if progress else True) as bar:
        gzipped = raw.peek(2)[:2] == _GZIP_MARK
        bar.offset = raw.tell
        try:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if gzipped else raw, bar
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            message = f"{file}: damaged or cut off: {error}; download it again"
            raise InputError("", message, kind="file") from error
        bar.update(size - bar.n)


def text_lines(file: Path, encoding: str = "utf-8", progress: bool = False) -> Generator[tuple[int, str], None, None]:
    r"""Numbers, from 1, and texts of a file's lines with their ends; they end in ``\n``, and in nothing else.

    Args:
        file: gzipped or not, with or without a byte order mark; lines of a file without any ``\n`` end in ``\r``.
        encoding: encoding of the text; a file that begins with the mark of UTF-16 is read as that.
        progress: whether to show a progress bar.

    Raises:
        InputError: the file cannot be read, or is not text of the encoding.
    """
    number = 0
    with opened(file, progress) as (source, bar):
        try:
            stream = io.TextIOWrapper(source, encoding=_by_mark(source, encoding), newline="\n")
            for number, line in enumerate(stream, start=1):
                if number == 1 and "\r" in line.rstrip("\r\n") and not line.endswith("\n"):
                    parts = line.removeprefix("\ufeff").split("\r")  # a single line: the file's lines end in \r
                    yield from ((at, f"{part}\n") for at, part in enumerate(parts, start=1))
                    return
                if number % _STEP == 0:
                    bar.update(bar.offset() - bar.n)
                yield number, line.removeprefix("\ufeff") if number == 1 else line
        except UnicodeError as error:  # of a single byte, or a missing byte order mark
            where = f"{file.name}, line {number + 1} or soon after"
            others = "latin-1, cp1252, cp1251 (Cyrillic) or gb18030 (Chinese)" if "8" in encoding else "utf-8"
            other = "utf-16-le, utf-16-be or utf-8" if codecs.lookup(encoding).name == "utf-16" else others
            message = f"{where}: no {encoding} text; name the file's encoding, for example --encoding={other}"
            raise InputError("", message, kind="file") from error
        except LookupError as error:
            message = f"there is no encoding '{encoding}'; give one like utf-8, latin-1"
            raise InputError("encoding", message) from error


def _by_mark(source: IO[bytes], encoding: str) -> str:
    """The encoding that a file's byte order mark tells, where the given one does not fit it."""
    start = cast("io.BufferedReader", source).peek(2)[:2]
    return "utf-16" if start in _UTF_16_MARKS and codecs.lookup(encoding).name == "utf-8" else encoding


def refuse_packed(file: Path) -> None:
    """Refuse an archive or a spreadsheet, which would only show as text of an unknown encoding.

    Raises:
        InputError: it is one, or cannot be read.
    """
    with opened(file) as (source, _):
        start = source.read(8)
    for mark, what in _PACKED.items():
        if start.startswith(mark):
            raise InputError("", f"{file.name} is {what}", kind="file")


def plain_name(file: Path) -> str:
    """A file's name in lower case without ``.gz``."""
    return file.name.lower().removesuffix(".gz")


def stem(file: Path) -> str:
    """A file's name without its endings ``.csv``, ``.jsonl.gz`` and their like, as it is written."""
    name = file.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name
