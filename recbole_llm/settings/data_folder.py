"""Where the files of a data set lie."""

from __future__ import annotations

import os
from pathlib import Path

from recbole_llm.errors import InputError
from recbole_llm.property_files import load_yaml, recbole_folder
from recbole_llm.registry import suggestion

BUILT_IN = "ml-100k"  # RecBole brings it along


def find_data(name: str, data_path: str, is_given: bool) -> str:
    """Folder of a data set: in ``data_path`` or that itself; else RecBole's own copy, or where RecBole will put it.

    Args:
        name: of the data set.
        data_path: the setting.
        is_given: whether the user set it; RecBole's own copy of ml-100k comes first otherwise.

    Raises:
        InputError: it is nowhere.
    """
    if name != BUILT_IN or is_given:
        for folder in (os.path.join(data_path, name), data_path):
            if has_data(Path(folder), name):
                return folder
    if name == BUILT_IN:
        return str(recbole_folder() / "config" / ".." / "dataset_example" / name)
    urls = load_yaml(recbole_folder() / "properties" / "dataset" / "url.yaml")
    by_recbole = os.path.join(data_path, name)
    if name in urls and not os.path.isdir(by_recbole):
        return by_recbole
    root = Path(data_path)
    if not root.is_dir():
        hint = suggestion(name, [BUILT_IN], "; set data_path to the right one")
        message = f"no data set '{name}': the folder {data_path} does not exist{hint}"
        raise InputError(message, kind="file", about="data_path")
    found = sorted(folder.name for folder in root.iterdir() if has_data(folder, folder.name))
    there = f"; found there: {', '.join(found[:20]) or 'none'}"
    hint = suggestion(name, found, "; set data_path")
    raise InputError(f"no data set '{name}' in {data_path}{there}{hint}", kind="unknown", about="dataset")


def has_data(folder: Path, name: str) -> bool:
    """Whether a folder holds interactions of a data set, whole (``<name>.inter``) or split (``<name>.train.inter``)."""
    return folder.is_dir() and any(
        file.name.startswith(f"{name}.") and file.name.endswith(".inter") for file in folder.iterdir()
    )
