"""Results that are computed once and found again: a folder per stage and fingerprint.

A stage writes into a ``.partial`` folder beside its final path, under a lock, and is renamed when it is whole. So a
killed run leaves either nothing or something to resume from, two runs never write the same folder, and a folder with
its final name is complete. What was written is checked on every reading; a stage that is damaged, or that another
version wrote in another format, is rebuilt, and the log says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from recbole_llm.disk import explained
from recbole_llm.distributed import alone, hear, process, tell
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_file
from recbole_llm.kept import Facts, KeptRows
from recbole_llm.locks import OwnedLock

Result = TypeVar("Result")
MANIFEST = "stage.json"
_THERE, _WHOLE = "there", "/whole"
UNFINISHED = "unfinished"
"""Folder in a stage's folder for what is of use until the stage is whole, and is removed then."""
log = logging.getLogger(__name__)


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Name what a result depends on: 16 hex digits of the SHA-256 of the facts as canonical JSON.

    Raises:
        TypeError: a fact is not plain data (str, number, bool, None, list or dict of these).
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stage_seed(seed: int, *names: str | int) -> int:
    """A seed of a stage's own, so that a computed and a loaded stage lead to the same next one."""
    return int(fingerprint({"seed": seed, "names": list(names)})[:15], 16)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part, even after a power cut."""
    aside = path.with_name(path.name + ".new")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


@cache
def writers() -> dict[str, str]:
    """Versions of the packages that decide what a stage holds."""
    return {
        "recbole_llm": str(import_module("recbole_llm").__version__),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
    }


class Stage(ABC, Generic[Result]):
    """A result that is computed once: what it depends on, how it is computed, and how it is read back.

    Attributes:
        name: the first part of the folder's name.
    """

    name: str
    is_resumable: ClassVar[bool] = False
    """Whether :meth:`compute` can go on from what a killed run left in the folder; else the folder is emptied."""
    is_joint: bool = False
    """Whether several processes of a command compute it together, of which the main one writes; else it works alone."""
    format_number: ClassVar[int] = 1
    """Of the files and of what their numbers mean: one more whenever a reader of the old ones would go wrong. A stage
    of another number is rebuilt; the versions of packages are recorded beside it, and are no reason to."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Everything the result depends on and nothing later, as plain data."""

    @abstractmethod
    def compute(self, folder: Path) -> None:
        """Write the result into a folder."""

    @abstractmethod
    def load(self, folder: Path) -> Result:
        """Read the result from the folder it was written into, by this run or another."""


class StageStore:
    """The folder that holds all stages of all runs, ``saved/stages/`` by default.

    Args:
        root: the folder; made when the first stage is written.

    Attributes:
        used: stage name to folder name, of every stage asked for.
        reused: names of those that an earlier run had computed, wholly or in part.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._rows: Path | None = None
        self.used: dict[str, str] = {}
        self.reused: list[str] = []

    def run(self, stage: Stage[Result]) -> Result:
        """The result of a stage, computed first if it is not there or damaged."""
        how = (stage.is_resumable, stage.format_number, stage.is_joint)
        return stage.load(self.get(stage.name, stage.facts(), stage.compute, *how))

    def folder(self, stage: Stage[Any]) -> Path:
        """Where the result of a stage that has run is kept."""
        return self.root / self.used[stage.name]

    def get(
        self,
        stage: str,
        facts: Mapping[str, Any],
        compute: Callable[[Path], None],
        resumable: bool = False,
        format_number: int = 1,
        joint: bool = False,
    ) -> Path:
        """Return the folder of a stage, computing it first if it is not there, damaged or of another format.

        Of several processes the main one looks and writes, and the others wait for its word.

        Args:
            stage: name of the stage, the first part of the folder's name.
            facts: everything the result depends on and nothing later, as plain data.
            compute: writes the result into the folder it is given; what lies in :data:`UNFINISHED` there is removed.
            resumable: whether ``compute`` can go on from what a killed run left in that folder; else it is emptied.
            format_number: see :class:`Stage`.
            joint: whether all processes take part in ``compute``.

        Raises:
            InputError: the folder cannot be written to, or the disk is full.
        """
        folder = self.root / f"{stage}-{fingerprint(facts)}"
        ours = self.used.get(stage) == folder.name
        self.used[stage] = folder.name
        if not process().is_main:
            return _follow(folder, self._keeping(compute))
        with _leading(folder, compute, joint) as leading:
            return self._get(stage, folder, ours, facts, leading, resumable, format_number)

    def _get(
        self,
        stage: str,
        folder: Path,
        ours: bool,
        facts: Mapping[str, Any],
        compute: Callable[[Path], None],
        resumable: bool,
        format_number: int,
    ) -> Path:
        """See :meth:`get`; for the process that writes."""
        if not _refusal(folder, format_number):  # it will not change, so that reading it needs no lock
            return self._found(stage, folder, ours)
        with explained(self.root, f"stage {stage}"):
            self.root.mkdir(parents=True, exist_ok=True)
            with OwnedLock(self.root / f".{folder.name}.lock", f"Stage {folder.name}"):
                refusal = _refusal(folder, format_number)
                if not refusal:
                    return self._found(stage, folder, ours)
                if folder.exists():
                    log.warning("Stage %s: %s %s; rebuilding it", stage, folder, refusal)
                    shutil.rmtree(folder)
                self._compute(stage, folder, facts, compute, resumable, format_number)
        return folder

    def _found(self, stage: str, folder: Path, ours: bool) -> Path:
        log.info("Stage %s: found in %s", stage, folder)
        if not ours:
            self.reused.append(stage)
        return folder

    def _compute(
        self,
        stage: str,
        folder: Path,
        facts: Mapping[str, Any],
        compute: Callable[[Path], None],
        resumable: bool,
        format_number: int,
    ) -> None:
        partial = _partial(folder, format_number)
        if partial.exists() and not resumable:
            _empty(partial)
        partial.mkdir(exist_ok=True)
        if any(partial.iterdir()):
            self.reused.append(stage)
        if _refusal(partial, format_number):  # else all that was missing is the name
            started = time.perf_counter()
            self._keeping(compute)(partial)
            files = {path.relative_to(partial).as_posix(): hash_file(path) for path in _files(partial)}
            seconds = round(time.perf_counter() - started, 3)
            record = {"stage": stage, "format": format_number, "versions": writers(), "seconds": seconds}
            write_json(partial / MANIFEST, {**record, "facts": dict(facts), "files": files})
        os.replace(partial, folder)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        log.info("Stage %s: computed in %.1f s, kept in %s", stage, _seconds(folder), folder)

    # ---- finished rows of what is not finished

    def keep(self, name: str, facts: Facts) -> KeptRows:
        """What finished rows are kept in: in the stage that is computed, or in what :meth:`unfinished` names."""
        return KeptRows(self._rows, name, facts)

    def _keeping(self, compute: Callable[[Path], None]) -> Callable[[Path], None]:
        """What computes a stage and keeps finished rows in its folder."""

        def keeping(partial: Path) -> None:
            with self._keeping_in(partial / UNFINISHED):
                compute(partial)

        return keeping

    @contextmanager
    def _keeping_in(self, folder: Path | None) -> Iterator[None]:
        before, self._rows = self._rows, folder
        try:
            yield
        finally:
            self._rows = before

    @contextmanager
    def unfinished(self, facts: Mapping[str, Any]) -> Iterator[None]:
        """A context whose computations outside stages keep their finished rows until it ends without an error.

        Where another process is at the same at this time, it keeps them, and here nothing is kept.

        Args:
            facts: what tells the whole of it from others, as plain data: the settings of a run.
        """
        folder = self.root / f".rows-{fingerprint(facts)}"
        lock = OwnedLock(self.root / f"{folder.name}.lock", f"Rows {folder.name}")
        is_ours = process().from_main(process().is_main and self._take(lock))
        try:
            with self._keeping_in(folder if is_ours else None):
                yield
            if is_ours and process().is_main:
                shutil.rmtree(folder, ignore_errors=True)
                lock.path.unlink(missing_ok=True)
        finally:
            lock.release()

    def _take(self, lock: OwnedLock) -> bool:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            return lock.take()
        except OSError as error:  # a folder that is read only still serves
            log.info("Finished rows are not kept: %s", error)
            return False


@contextmanager
def _leading(folder: Path, compute: Callable[[Path], None], joint: bool) -> Iterator[Callable[[Path], None]]:
    """A context in which the main process finds or computes a stage, and after which the others know that it is there.

    Its words wait for those who ask later, as it may have asked for the stage while it worked alone.

    Yields:
        What computes the stage: together, or as if nobody else were there.
    """
    key, is_together = _key(folder), joint and process().count > 1
    word = _THERE

    def leading(partial: Path) -> None:
        nonlocal word
        if is_together:
            word = str(partial.resolve())
            tell(key, word)
            compute(partial)
            return
        with alone():
            compute(partial)

    yield leading
    if word == _THERE:
        tell(key, word)
    tell(key + _WHOLE, _THERE)


def _follow(folder: Path, compute: Callable[[Path], None]) -> Path:
    """Take part in computing a joint stage, where it has to be computed, and wait until it is whole."""
    key = _key(folder)
    if (word := hear(key)) != _THERE:
        compute(Path(word))
    hear(key + _WHOLE)
    if not folder.is_dir():
        message = f"{folder.parent} is not the main process's; set a folder on a disk that all machines share"
        raise InputError("checkpoint_dir", message, kind="environment")
    return folder


def _key(folder: Path) -> str:
    return f"stage/{folder.resolve()}"


def _partial(folder: Path, format_number: int) -> Path:
    """Where a stage is written until it is whole; what an older format has left there is removed."""
    own = folder.with_name(f"{folder.name}.partial" + (f"-{format_number}" if format_number > 1 else ""))
    for other in folder.parent.glob(f"{folder.name}.partial*"):
        if other != own:
            log.warning("Stage %s: an unfinished one of another format is removed", folder.name)
            shutil.rmtree(other)
    return own


def _empty(partial: Path) -> None:
    """Remove what a killed run left, but for what is made to be gone on from."""
    for path in partial.iterdir():
        if path.is_dir() and path.name != UNFINISHED:
            shutil.rmtree(path)
        elif path.name != UNFINISHED:
            path.unlink()


def _seconds(folder: Path) -> float:
    return float(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["seconds"])


def _refusal(folder: Path, format_number: int) -> str:
    """Why a stage's folder cannot be used as it is, as what a sentence says of it; empty where it can."""
    damage = find_damage(folder)
    if damage is not None:
        return f"is damaged ({damage})"
    found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if (number := found.get("format", 1)) != format_number:
        writer = found.get("versions", {}).get("recbole_llm")
        told = f"was written in format {number}" + (f" by recbole_llm {writer}" if writer else "")
        return f"{told}, and this version writes format {format_number}"
    return ""


def _files(folder: Path) -> list[Path]:
    """What a stage's result is made of."""
    unfinished = folder / UNFINISHED
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST and not path.is_relative_to(unfinished)
    )


def find_damage(folder: Path) -> str | None:
    """Say what is wrong with a stage's folder, or None when every file is as it was written."""
    try:
        expected: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        entries = list(expected.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is missing or unreadable"
    for name, digest in entries:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if hash_file(folder / name) != digest:
            return f"{name} has changed"
    return None
