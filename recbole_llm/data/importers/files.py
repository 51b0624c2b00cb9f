"""Files as people have them on disk: gzipped or not, in any text encoding, read line by line with a progress bar."""

from __future__ import annotations

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
        file: gzipped or not, with or without a byte order mark.
        encoding: of the text.
        progress: whether to show a progress bar.

    Raises:
        InputError: the file cannot be read, or is not text of the encoding.
    """
    number = 0
    with opened(file, progress) as (source, bar):
        try:
            stream = io.TextIOWrapper(source, encoding=encoding, newline="\n")
            for number, line in enumerate(stream, start=1):
                if number % _STEP == 0:
                    bar.update(bar.offset() - bar.n)
                yield number, line.removeprefix("\ufeff") if number == 1 else line
        except UnicodeDecodeError as error:
            where, other = f"{file.name}, line {number + 1} or soon after", "latin-1" if "8" in encoding else "utf-8"
            message = f"{where}: no {encoding} text; name the file's encoding, for example --encoding={other}"
            raise InputError("", message, kind="file") from error
        except LookupError as error:
            message = f"there is no encoding '{encoding}'; give one like utf-8, latin-1"
            raise InputError("encoding", message) from error


def plain_name(file: Path) -> str:
    """A file's name in lower case without ``.gz``."""
    return file.name.lower().removesuffix(".gz")


def stem(file: Path) -> str:
    """A file's name without its endings ``.csv``, ``.jsonl.gz`` and their like, as it is written."""
    name = file.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name
