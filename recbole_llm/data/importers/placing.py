"""A data set's files are put in their place all at once, or told to be unfinished."""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from recbole_llm.disk import UNFINISHED_IMPORT
from recbole_llm.errors import InputError

# What imports write, whichever layout they read. Other files of the folder are the user's.
_ENDINGS = ("inter", "train.inter", "valid.inter", "test.inter", "item", "yaml")
log = logging.getLogger(__name__)


def is_unfinished(folder: Path) -> bool:
    """Whether the files of a data set are a mixture that an interrupted import left."""
    return (folder / f"{UNFINISHED_IMPORT}.{folder.name}").exists()


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """A folder to write a data set to, which becomes the data set's when all of it is written.

    A new data set appears by one rename. The files of an earlier one are replaced, or removed where the new one has no
    such file, while the folder holds a mark, with which runs refuse it; whatever fails before, the earlier one stays.

    Args:
        folder: folder of the data set; its name is the data set's.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    try:
        home = folder if folder.exists() else folder.parent
        home.mkdir(parents=True, exist_ok=True)
        _name_left_overs(home, folder.name)
        aside = _new_folder(home, folder.name)
        try:
            yield aside
            if home == folder:
                _replace(folder, aside)
            else:
                os.rename(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        state = "unfinished: run the command again with --overwrite" if is_unfinished(folder) else "as it was"
        message = f"cannot write {folder} ({error.strerror}); make room there, or give another folder (it is {state})"
        raise InputError("out", message, kind="file") from error


def _new_folder(home: Path, name: str) -> Path:
    for number in count():
        try:
            (aside := home / f".{name}.import-{os.getpid()}-{number}").mkdir()
        except FileExistsError:
            continue
        return aside
    raise AssertionError("count ends")


def _name_left_overs(home: Path, name: str) -> None:
    """Name what killed imports left: whether they are dead cannot be told on a disk that machines share."""
    for found in sorted(home.glob(f".{glob.escape(name)}.import-*")):
        log.warning("%s is of an import that was killed, or still runs; remove it if none does", found)


def _replace(folder: Path, aside: Path) -> None:
    """Put files in the place of an earlier data set's."""
    name = folder.name
    mark = folder / f"{UNFINISHED_IMPORT}.{name}"
    mark.touch()
    for ending in _ENDINGS:
        file = f"{name}.{ending}"
        if (aside / file).exists():
            os.replace(aside / file, folder / file)
        else:
            (folder / file).unlink(missing_ok=True)
    mark.unlink()
    known = {f"{name}.{ending}" for ending in _ENDINGS}
    others = sorted({file.name for file in folder.glob(f"{glob.escape(name)}.*")} - known)
    if others:
        log.warning("%s: no import wrote %s, which stays as it was", folder, ", ".join(others))
