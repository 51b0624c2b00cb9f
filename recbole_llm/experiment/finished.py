"""Finished runs of a comparison, so that a stopped command continues."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from recbole_llm.classic.kept_vectors import VECTORS
from recbole_llm.disk import write_json
from recbole_llm.experiment.run_record import DATA, FACTS, Run, read_facts
from recbole_llm.hashing import find_change, hash_file
from recbole_llm.llm.folders import folder_fingerprint
from recbole_llm.settings.config import NO_EFFECT, Config, files_in
from recbole_llm.stages import fingerprint

PREFIX, RUNS = "compare-", "runs.json"
log = logging.getLogger(__name__)


def run_fingerprint(config: Config, label: str, few_shot: bool, data: str) -> str:
    """What tells a run from others that gave other results: its settings, the files they name, and its data.

    The code's revision is not in it: a table marks runs of another one.

    Args:
        config: the resolved config.
        label: the model's name in the table.
        few_shot: whether ``train_sample_size`` applies.
        data: digest of the data set's files.
    """
    settings = {key: value for key, value in config.to_dict().items() if key not in NO_EFFECT}
    named = {key: _content(path) for key, path in files_in(settings).items()}
    return fingerprint({"settings": settings, "files": named, "label": label, "few_shot": few_shot, "data": data})


def _content(path: Path) -> str:
    """Digest of a file, or of a folder: an LLM's, or that of a run whose item vectors are taken."""
    if path.is_dir():
        vectors = path / VECTORS
        return folder_fingerprint(path) + (hash_file(vectors) if vectors.is_file() else "")
    return hash_file(path) if path.is_file() else ""


class FinishedRuns:
    """The runs that comparisons have finished, in the folders ``<checkpoint_dir>/compare-*``.

    Args:
        folder: folder of the comparison that notes its runs here; made if needed. Runs of other comparisons beside it
            are found, too, so that more seeds or models only add runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, name: str, config: Config) -> Run | None:
        """A finished run by its fingerprint; None if there is none, or its folder is not as the run left it."""
        folders = [self.folder, *sorted(self.folder.parent.glob(f"{PREFIX}*"))]
        for entry in (found for folder in folders if (found := _read(folder).get(name))):
            folder = self.folder.parent / entry["folder"]
            if damage := find_change(folder, entry["files"]):
                log.warning("%s has changed (%s); its run is repeated.", folder, damage)
                continue
            return Run(folder, config, *read_facts(folder, config))
        return None

    def add(self, name: str, run: Run) -> None:
        """Note that a run is finished; several processes may share the folder."""
        names = ["metrics.json", FACTS, DATA, *sorted(file.name for file in run.folder.glob("test_*.csv"))]
        files = {file: hash_file(run.folder / file) for file in names}
        entry = {"folder": os.path.relpath(run.folder, self.folder.parent), "files": files}
        with FileLock(self.folder / f".{RUNS}.lock"):  # what another process notes meanwhile is not to be lost
            write_json(self.folder / RUNS, {**_read(self.folder), name: entry})


def _read(folder: Path) -> dict[str, Any]:
    file = folder / RUNS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
