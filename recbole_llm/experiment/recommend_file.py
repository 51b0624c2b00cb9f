"""Recommendations for many users, written to a file batch by batch and resumable."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.disk import explained, write_json
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_json
from recbole_llm.lazy import needs_package
from recbole_llm.report.rows import has_pyarrow

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".csv", ".jsonl", ".parquet")
log = logging.getLogger(__name__)


def check_out(out: Path) -> None:
    """Refuse a file that could not be written whatever is recommended.

    Raises:
        InputError: the suffix is unknown, Parquet is asked for and pyarrow is missing, or the place takes no file.
    """
    if out.suffix not in FORMATS:
        raise InputError("out", f"'{out}' ends in none of {', '.join(FORMATS)}; choose one of them", kind="value")
    if out.suffix == ".parquet" and not has_pyarrow():
        raise needs_package("out", "pyarrow", "write .csv or .jsonl")
    try:
        folders = [file for file in (out, *_beside(out)) if file.is_dir()]
        there = next(path for path in out.absolute().parents if path.exists())
    except OSError as error:
        message = f"{out} cannot be looked up ({error.strerror}); give another file"
        raise InputError("out", message, kind="file") from error
    if folders:
        raise InputError("out", f"{folders[0]} is a folder; give a file in it", kind="file")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        told = os.strerror(errno.EACCES if there.is_dir() else errno.ENOTDIR)
        raise InputError("out", f"cannot write {out}: {there} ({told}); give a file in another folder", kind="file")


def _beside(out: Path) -> tuple[Path, Path]:
    """The file that grows, and the note of how far it is whole."""
    return out.with_name(out.name + ".part"), out.with_name(out.name + ".progress.json")


def write_recommendations(
    out: Path,
    asked: Sequence[Any],
    recommend: Callable[[Sequence[Any]], pd.DataFrame],
    facts: dict[str, Any],
    *,
    batch: int = 256,
    show_progress: bool = True,
) -> int:
    """Ask for the recommendations of all, a batch at a time, and write them.

    They go into ``<out>.part``, and ``<out>.progress.json`` says how far it is whole; the same call continues from
    there. No more than a batch is held in memory.

    Args:
        out: ``.csv``, ``.jsonl`` or ``.parquet``.
        asked: ids of users, or histories.
        recommend: gives the lines of some of them, in their order; a column ``query`` counts from 0 in each call.
        facts: what decides the lines, as JSON values: a part that other facts decided is not gone on with.
        batch: how many are asked for at once.
        show_progress: show a bar.

    Returns:
        How many of ``asked`` had been written by an earlier call.

    Raises:
        InputError: see :func:`check_out`; or the disk is full.
    """
    check_out(out)
    _make_folder(out.parent)
    part, note = _beside(out)
    digest = hash_json([facts, list(asked)])
    done, size = _progress(part, note, digest)
    already = done
    from recbole_llm.progress import Bar

    with (
        explained(out.parent, f"the recommendations in {out.name}", "out"),
        part.open("r+b" if done else "wb") as file,
        Bar(total=len(asked), initial=done, disable=not show_progress) as bar,
    ):
        file.truncate(size)
        file.seek(size)
        while done < len(asked):
            now = asked[done : done + batch]
            lines = recommend(now)
            if "query" in lines:
                lines = lines.assign(query=lines["query"] + done)
            file.write(_encoded(lines, ".jsonl" if out.suffix == ".jsonl" else ".csv", header=not done))
            file.flush()
            os.fsync(file.fileno())
            done += len(now)
            bar.update(len(now))
            write_json(note, {"facts": digest, "done": done, "size": file.tell()})
    with explained(out.parent, f"the recommendations in {out.name}", "out"):
        _finish(part, out)
    note.unlink(missing_ok=True)
    return already


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make {folder} ({error.strerror}); give a file in another folder"
        raise InputError("out", message, kind="file") from error


def _finish(part: Path, out: Path) -> None:
    """Put a whole part in the place of the file that is asked for."""
    if out.suffix == ".parquet":
        whole = out.with_name(f"{out.name}.new")
        _to_parquet(part, whole)
        whole.replace(out)
        part.unlink()
    else:
        part.replace(out)


def _progress(part: Path, note: Path, digest: str) -> tuple[int, int]:
    """How many are written, and how many bytes of the part they are."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        if found["facts"] == digest and part.stat().st_size >= found["size"]:
            log.info("Resuming after the %d in %s.", found["done"], part)
            return int(found["done"]), int(found["size"])
        log.warning("%s was written by another command; it is rewritten.", part)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        log.warning("%s cannot be read; %s is rewritten.", note, part)
    return 0, 0


def _encoded(lines: pd.DataFrame, suffix: str, header: bool) -> bytes:
    if suffix == ".csv":
        text: str = lines.to_csv(index=False, header=header)
    else:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.to_dict("records"))
    return text.encode("utf-8")


def _to_parquet(part: Path, out: Path) -> None:
    """The CSV of a part as Parquet, block by block."""
    import pyarrow  # type: ignore[import-not-found,unused-ignore]
    from pyarrow import csv, parquet  # type: ignore[import-not-found,unused-ignore]

    names = part.open(encoding="utf-8").readline().rstrip("\n").split(",")
    numbers = {"query": pyarrow.int64(), "rank": pyarrow.int64(), "score": pyarrow.float64()}
    types = {name: numbers.get(name, pyarrow.string()) for name in names}
    options = csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    parsing = csv.ParseOptions(newlines_in_values=True)
    if not part.stat().st_size:  # nobody was asked for
        parquet.write_table(pyarrow.table({}), out)
        return
    with csv.open_csv(part, convert_options=options, parse_options=parsing) as blocks:
        with parquet.ParquetWriter(out, blocks.schema) as writer:
            for block in blocks:
                writer.write_batch(block)


def read_queries(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The histories of a file, a JSON list of ids or titles per line, each with the place where it stands.

    Raises:
        InputError: a line is something else; with its number.
    """
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{file}, line {number}"
                yield place, parse_history(line, place)


def parse_history(text: str, where: str = "history") -> list[str]:
    """A history from text: a JSON list of ids or titles, or ids or titles with ``;`` between them.

    Raises:
        InputError: it looks like JSON but is not, or holds anything but text and numbers.

    Example:
        >>> parse_history("Toy Story (1995); Babe (1995)"), parse_history('["Se7en; the film", 12]')
        (['Toy Story (1995)', 'Babe (1995)'], ['Se7en; the film', '12'])
    """
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(";") if item.strip()]
    try:
        items = json.loads(text)
    except RecursionError:
        raise InputError("history", f"{where} is no list of ids or titles", kind="value") from None
    except ValueError as error:
        message = f"{where} is no JSON list: {error}; a title that begins with '[' stands in one: [\"[REC]\"]"
        raise InputError("history", message, kind="value") from None
    if not all(isinstance(item, str | int) for item in items):
        raise InputError("history", f"{where} holds something else than ids or titles", kind="value")
    return [str(item) for item in items]
