"""New paths of files that a run names, after its folder was moved or copied."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_llm.errors import InputError
from recbole_llm.settings.config import FILES, FOLDERS
from recbole_llm.settings.data_folder import built_in_folder, check_path, find_data, has_data, is_built_in

log = logging.getLogger(__name__)


def paths_now(recorded: Mapping[str, Any], folder: Path, data_path: str | Path | None = None) -> dict[str, str]:
    """The settings of a run that name files or folders which are elsewhere now.

    What is no longer where the run found it is looked for at the same place relative to the run: a project that was
    moved as a whole is found as a whole. What still lies at its old place is taken from there.

    Args:
        recorded: the run's own settings.
        folder: folder of the run, as it is now.
        data_path: where the data set lies, if the caller says so.

    Returns:
        Settings that take the place of the recorded ones; none where nothing has moved.

    Raises:
        InputError: the data set is at neither place.
    """
    before, now = str(recorded.get("checkpoint_dir", "")), str(folder.absolute().parent)
    found: dict[str, str] = {}
    for key in (*FOLDERS, *FILES):
        path = recorded.get(key)
        if not isinstance(path, str) or not os.path.isabs(path) or not before or os.path.exists(path):
            continue
        there = os.path.normpath(os.path.join(now, os.path.relpath(path, before)))
        if os.path.exists(there):
            found[key] = there
    if data_path is not None:
        found["data_path"] = os.path.abspath(data_path)
    elif is_built_in(str(recorded.get("data_path"))) and not os.path.isdir(str(recorded["data_path"])):
        found.setdefault("data_path", built_in_folder())
    elif "data_path" in recorded and "data_path" not in found and not os.path.isdir(str(recorded["data_path"])):
        message = f"the data of this run are no longer in {recorded['data_path']}; give the folder where they are now"
        raise InputError("data_path", message, kind="file")
    if "dataset" in recorded and (place := found.get("data_path", recorded.get("data_path"))):
        _check_there(str(recorded["dataset"]), str(place))
    for key, path in found.items():
        if data_path is None or key != "data_path":
            log.info("%s: %s is now %s", key, recorded.get(key), path)
    return found


def _check_there(dataset: str, data_path: str) -> None:
    """Refuse a folder without the data set: before settings are read, some of which come from the data set's own file.

    Raises:
        InputError: naming the folder.
    """
    check_path("data_path", data_path)
    folder = find_data(dataset, data_path, is_given=True)
    # RecBole would download it, and its own copy would stand in for another ml-100k; a run needs the data it read.
    is_there = folder in (data_path, os.path.join(data_path, dataset))
    if not has_data(Path(folder), dataset) or not is_there:
        message = f"no data set '{dataset}' in {data_path}, which this run was trained on; give the folder it is in now"
        raise InputError("data_path", message, kind="file")
