"""Results that are computed once and found again: a folder per stage and fingerprint.

A stage writes into a ``.partial`` folder beside its final path, under a lock, and is renamed when it is whole. So a
killed run leaves either nothing or something to resume from, two runs never write the same folder, and a folder with
its final name is complete. What was written is checked on every reading; a damaged stage is rebuilt, and the log says
so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from filelock import FileLock, Timeout

from recbole_llm.hashing import hash_file

Result = TypeVar("Result")
MANIFEST = "stage.json"
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
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


class Stage(ABC, Generic[Result]):
    """A result that is computed once: what it depends on, how it is computed, and how it is read back.

    Attributes:
        name: the first part of the folder's name.
    """

    name: str
    is_resumable: ClassVar[bool] = False
    """Whether :meth:`compute` can go on from what a killed run left in the folder; else the folder is emptied."""

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
        self.used: dict[str, str] = {}
        self.reused: list[str] = []

    def run(self, stage: Stage[Result]) -> Result:
        """The result of a stage, computed first if it is not there or damaged."""
        return stage.load(self.get(stage.name, stage.facts(), stage.compute, stage.is_resumable))

    def folder(self, stage: Stage[Any]) -> Path:
        """Where the result of a stage that has run is kept."""
        return self.root / self.used[stage.name]

    def get(
        self, stage: str, facts: Mapping[str, Any], compute: Callable[[Path], None], resumable: bool = False
    ) -> Path:
        """Return the folder of a stage, computing it first if it is not there or damaged.

        Args:
            stage: name of the stage, the first part of the folder's name.
            facts: everything the result depends on and nothing later, as plain data.
            compute: writes the result into the folder it is given.
            resumable: whether ``compute`` can go on from what a killed run left in that folder; else it is emptied.
        """
        folder = self.root / f"{stage}-{fingerprint(facts)}"
        ours = self.used.get(stage) == folder.name
        self.used[stage] = folder.name
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock(folder):
            if folder.exists():
                damage = find_damage(folder)
                if damage is None:
                    log.info("Stage %s: found in %s", stage, folder)
                    if not ours:
                        self.reused.append(stage)
                    return folder
                log.warning("Stage %s: %s is damaged (%s); rebuilding it", stage, folder, damage)
                shutil.rmtree(folder)
            self._compute(stage, folder, facts, compute, resumable)
        return folder

    def _lock(self, folder: Path) -> FileLock:
        lock = FileLock(self.root / f".{folder.name}.lock")
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            log.info("Stage %s is being computed by another run; waiting for it", folder.name)
        return lock

    def _compute(
        self, stage: str, folder: Path, facts: Mapping[str, Any], compute: Callable[[Path], None], resumable: bool
    ) -> None:
        partial = folder.with_name(folder.name + ".partial")
        if partial.exists() and not resumable:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        if any(partial.iterdir()):
            self.reused.append(stage)
        started = time.perf_counter()
        compute(partial)
        files = {str(path.relative_to(partial)): hash_file(path) for path in _files(partial)}
        seconds = round(time.perf_counter() - started, 3)
        write_json(partial / MANIFEST, {"stage": stage, "seconds": seconds, "facts": dict(facts), "files": files})
        os.replace(partial, folder)
        log.info("Stage %s: computed in %.1f s, kept in %s", stage, seconds, folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def find_damage(folder: Path) -> str | None:
    """Say what is wrong with a stage's folder, or None when every file is as it was written."""
    try:
        expected: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return f"{MANIFEST} is missing or unreadable"
    for name, digest in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if hash_file(folder / name) != digest:
            return f"{name} has changed"
    return None
