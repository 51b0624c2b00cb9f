"""The folder of all stages: results are found there, or computed under a lock."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_llm.disk import explained
from recbole_llm.distributed import process
from recbole_llm.kept import Facts, KeptRows
from recbole_llm.locks import OwnedLock
from recbole_llm.stages.folder import UNFINISHED, clear, partial_of, read_manifest, refusal_of, write_manifest
from recbole_llm.stages.joint import follow, leading
from recbole_llm.stages.stage import Result, Stage, fingerprint
from recbole_llm.timeline import timeline

ANSWERS = ".answers"
LASTING = ("answers", "clicks")  # of finished rows: what is small, and which other runs of the same weights ask for
log = logging.getLogger(__name__)


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
        """The result of a stage, computed first if it is not there, damaged or of another format.

        Of several processes the main one looks and writes, and the others wait for its word.

        Raises:
            InputError: the folder cannot be written to, or the disk is full.
        """
        facts = stage.facts()
        folder = self._folder_of(stage, facts)
        is_known = self.used.get(stage.name) == folder.name
        self.used[stage.name] = folder.name
        if process().is_main:
            with leading(folder, self._keeping(stage.compute), stage.is_joint) as compute:
                self._find(stage, facts, folder, compute, is_known)
        else:
            follow(folder, self._keeping(stage.compute))
        return stage.load(folder)

    def has(self, stage: Stage[Any]) -> bool:
        """Whether the result of a stage is there, for all processes alike."""
        folder = self._folder_of(stage, stage.facts())
        return process().from_main(process().is_main and not refusal_of(folder, stage.format_number))

    def folder(self, stage: Stage[Any]) -> Path:
        """Where the result of a stage that has run is kept."""
        return self.root / self.used[stage.name]

    def _folder_of(self, stage: Stage[Any], facts: Mapping[str, Any]) -> Path:
        return self.root / f"{stage.name}-{fingerprint(facts)}"

    def _find(
        self,
        stage: Stage[Any],
        facts: Mapping[str, Any],
        folder: Path,
        compute: Callable[[Path], None],
        is_known: bool,
    ) -> None:
        """Look for a stage, and compute it where it cannot be used; for the process that writes."""
        refusal = refusal_of(
            folder, stage.format_number
        )  # a whole one will not change, so that reading it needs no lock
        if refusal:
            with explained(self.root, f"stage {stage.name}"):
                self.root.mkdir(parents=True, exist_ok=True)
                with OwnedLock(self.root / f".{folder.name}.lock", f"Stage {folder.name}"):
                    refusal = refusal_of(folder, stage.format_number)  # another run may have computed it meanwhile
                    if refusal and folder.exists():
                        log.warning("Stage %s: %s %s; rebuilding it", stage.name, folder, refusal)
                        shutil.rmtree(folder)
                    if refusal:
                        self._compute(stage, facts, folder, compute)
        if not refusal:
            log.info("Stage %s: found in %s", stage.name, folder)
            timeline().reused(folder.name, float(read_manifest(folder)["seconds"]))
            if not is_known:
                self.reused.append(stage.name)

    def _compute(
        self, stage: Stage[Any], facts: Mapping[str, Any], folder: Path, compute: Callable[[Path], None]
    ) -> None:
        """Compute a stage beside its folder, from what a killed run has left there, and rename it when it is whole."""
        partial = partial_of(folder, stage.format_number)
        if partial.exists() and not stage.is_resumable:
            clear(partial)
        partial.mkdir(exist_ok=True)
        has_parts = any(partial.iterdir())
        if has_parts:
            self.reused.append(stage.name)
        if refusal_of(partial, stage.format_number):  # else all that was missing is the name
            started = time.perf_counter()
            with timeline().computing(stage.name, folder.name, has_parts):
                compute(partial)
            write_manifest(partial, stage, facts, time.perf_counter() - started)
        os.replace(partial, folder)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        seconds = read_manifest(folder)["seconds"]
        log.info("Stage %s: computed in %.1f s, kept in %s", stage.name, seconds, folder)

    # ---- finished rows of what is not finished

    def keep(self, name: str, facts: Facts) -> KeptRows:
        """What finished rows are kept in: in the stage that is computed, or in what :meth:`unfinished` names."""
        kept = KeptRows(self._rows, name, facts, self.root / ANSWERS if name in LASTING else None)
        if kept.found_ended and name not in self.reused:
            self.reused.append(name)
        return kept

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
    def unfinished(self, facts: Mapping[str, Any]) -> Iterator[Path | None]:
        """A context whose computations outside stages keep their finished rows until it ends without an error.

        Answers stay for good, as the weights do: a run that asks the same weights the same finds them.

        Where another process is at the same at this time, it keeps them, and here nothing is kept.

        Args:
            facts: what tells the whole of it from others, as plain data: the settings of a run.

        Yields:
            The folder that they are kept in, which may not be there yet; None where nothing is kept.
        """
        folder, lock = self._rows_of(facts)
        is_ours = process().from_main(process().is_main and self._take(lock))
        try:
            with self._keeping_in(folder if is_ours else None):
                yield self._rows
            if is_ours and process().is_main:
                self._file_away(folder)
                shutil.rmtree(folder, ignore_errors=True)
                lock.path.unlink(missing_ok=True)
        finally:
            lock.release()

    def _file_away(self, folder: Path) -> None:
        """Put what lasts of finished rows where other runs find it."""
        for file in [found for name in LASTING for found in folder.glob(f"{name}-*.jsonl")]:
            (self.root / ANSWERS).mkdir(exist_ok=True)
            os.replace(file, self.root / ANSWERS / file.name)

    def forget(self, facts: Mapping[str, Any]) -> None:
        """Remove what :meth:`unfinished` has kept of something that is given up; facts are those of there."""
        folder, lock = self._rows_of(facts)
        if process().is_main and folder.exists() and self._take(lock):
            shutil.rmtree(folder, ignore_errors=True)
            lock.path.unlink(missing_ok=True)
            lock.release()

    def _rows_of(self, facts: Mapping[str, Any]) -> tuple[Path, OwnedLock]:
        """Where finished rows are kept, and their lock."""
        folder = self.root / f".rows-{fingerprint(facts)}"
        return folder, OwnedLock(self.root / f"{folder.name}.lock", f"Rows {folder.name}")

    def _take(self, lock: OwnedLock) -> bool:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            return lock.take()
        except OSError as error:  # a folder that is read only still serves
            log.info("Finished rows are not kept: %s", error)
            return False
