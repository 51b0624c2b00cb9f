"""Finished batches of a long computation, in a file that only grows, so that a killed run continues after them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from recbole_llm.distributed import process
from recbole_llm.hashing import hash_json
from recbole_llm.timeline import timeline

FORMAT_NUMBER = 1
"""Of what is kept: one more whenever what an earlier version computed would be wrong."""
Value = TypeVar("Value")
Facts = Callable[[], Mapping[str, Any]]
log = logging.getLogger(__name__)


def _as_it_is(value: Any) -> Any:
    return value


class Keep(Protocol):
    """Gives what the rows of a computation are kept in, by its name and what they depend on."""

    def __call__(self, name: str, facts: Facts) -> KeptRows:
        """See :class:`KeptRows`."""
        ...


class KeptRows:
    """What a computation gives for each of its rows, kept batch by batch.

    A batch that is whole in the file is not computed again. Batches must be made in the same way in every run, as their
    rows may round otherwise in other company.

    Args:
        folder: where the file goes, made with the first batch; None keeps nothing.
        name: name of the computation, the first part of the file's name.
        facts: everything the values depend on, as plain data; asked for only if there is a folder.
        ended: folder of what runs that have ended have left, which is read too.

    Attributes:
        found_ended: whether rows were found there.

    Example:
        >>> facts = lambda: {"weights": "a0", "rows": [5, 6]}
        >>> KeptRows(Path("kept"), "squares", facts).batch([0, 1], lambda rows: {row: row**2 for row in rows})
        {0: 0, 1: 1}
        >>> KeptRows(Path("kept"), "squares", facts).batch([0, 1], lambda rows: {})  # is not asked
        {0: 0, 1: 1}
    """

    def __init__(
        self, folder: Path | None = None, name: str = "", facts: Facts = dict, ended: Path | None = None
    ) -> None:
        self._file: Path | None = None
        self._found: dict[int, Any] = {}
        self.found_ended = False
        if folder is not None:
            stem = f"{name}-{hash_json({'format': FORMAT_NUMBER, **facts()})[:16]}"
            self._file = folder / f"{stem}.{process().rank}.jsonl"
            for file in sorted(folder.glob(f"{stem}.*.jsonl")):
                self._found |= _read(file, is_own=file == self._file)
            if self._found and self._file not in _written:
                log.info("Resuming after %d rows of %s from an earlier run.", len(self._found), name)
                timeline().resumed()
            _written.add(self._file)
            for file in [] if ended is None else sorted(ended.glob(f"{stem}.*.jsonl")):
                self._found |= _read(file, is_own=False)
                self.found_ended = True
            if self.found_ended:
                log.info("The %s were found in %s", name, ended)
                timeline().resumed()

    def batch(
        self,
        rows: Sequence[int],
        compute: Callable[[Sequence[int]], Mapping[int, Value]],
        pack: Callable[[Value], Any] = _as_it_is,
        unpack: Callable[[Any], Value] = _as_it_is,
    ) -> Mapping[int, Value]:
        """The values of a batch of rows, computed where they are not known.

        Args:
            rows: rows of the batch.
            compute: gives each row's value.
            pack: turns a value into JSON data.
            unpack: turns it back.
        """
        if self._file is None:
            return compute(rows)
        if all(row in self._found for row in rows):
            return {row: unpack(self._found[row]) for row in rows}
        values = compute(rows)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({str(row): pack(values[row]) for row in rows})
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        return values


_written: set[Path] = set()  # by this process


def _read(file: Path, is_own: bool) -> dict[int, Any]:
    """The rows of a file: a killed process may have left a part of a last line, which is cut off our own."""
    content = file.read_bytes()
    whole, found = 0, dict[int, Any]()
    for line in content.splitlines(keepends=True):
        try:
            own = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            own = None
        if own is None:
            break
        found |= {int(row): value for row, value in own.items()}
        whole += len(line)
    if is_own and whole < len(content):
        with open(file, "r+b") as cut:
            cut.truncate(whole)
    return found


def keep_nothing(name: str, facts: Facts) -> KeptRows:
    """A :class:`Keep` for computations that start over."""
    return KeptRows()
