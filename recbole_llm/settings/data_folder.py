"""Where the files of a data set lie."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from recbole_llm.disk import UNFINISHED_IMPORT
from recbole_llm.errors import InputError
from recbole_llm.property_files import BUILT_IN, load_yaml, recbole_folder
from recbole_llm.registry import suggestion

_TABLE = re.compile(r"(.+)\.(?:csv|tsv|txt|dat|jsonl?|ndjson|parquet|data)(?:\.gz)?", re.IGNORECASE)


def check_path(key: str, path: str) -> None:
    """Refuse what the system takes for no path at all, or does not let be looked up: whether it is there is not asked.

    Raises:
        InputError: the system's reason.
    """
    try:
        os.stat(os.path.expanduser(path))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InputError(
            key, f"{path} cannot be looked up ({error.strerror}); give another path", kind="file"
        ) from error
    except ValueError as error:  # a NUL character, or half of a surrogate pair
        raise InputError(key, f"{path} is no path; give another one", kind="file") from error


def find_data(name: str, data_path: str, is_given: bool) -> str:
    """Folder of a data set: in ``data_path`` or that itself; else RecBole's own copy, or where RecBole will put it.

    What lies in ``data_path``, given or not, comes before RecBole's own copy: nobody puts an ml-100k there for nothing.

    Args:
        name: name of the data set.
        data_path: the setting.
        is_given: whether the user set it; a folder that is not there is refused then, also for ml-100k.

    Raises:
        InputError: it is nowhere, it is half of an import, or its name is a path.
    """
    if Path(name).name != name or name == "..":
        _refuse_a_table(name)
        raise InputError(
            "dataset", f"'{name}' is a path, not a name; give the name alone, and the folder above it as data_path"
        )
    is_optional = name == BUILT_IN and not is_given
    for folder in (os.path.join(data_path, name), data_path):
        if is_optional and not _is_open(Path(folder)):
            continue
        if os.path.exists(os.path.join(folder, f"{UNFINISHED_IMPORT}.{name}")):
            message = f"the import of '{name}' to {folder} was interrupted; run it again with --overwrite"
            raise InputError("dataset", message, kind="file")
        if has_data(Path(folder), name):
            return folder
    if name == BUILT_IN and is_given and not os.path.isdir(data_path):
        message = f"there is no folder {data_path}; leave data_path out for RecBole's own copy of {BUILT_IN}"
        raise InputError("data_path", message, kind="file")
    if name == BUILT_IN:
        return built_in_folder()
    _refuse_a_table(name)
    urls = load_yaml(recbole_folder() / "properties" / "dataset" / "url.yaml")
    by_recbole = os.path.join(data_path, name)
    if name in urls and not os.path.isdir(by_recbole):
        return by_recbole
    root = Path(data_path)
    if not root.is_dir():
        hint = suggestion(name, [BUILT_IN], "; set data_path to the right one")
        message = f"no data set '{name}': the folder {data_path} does not exist{hint}"
        raise InputError(message, kind="file", about="data_path")
    found = sorted(folder.name for folder in _files_in(root) if _is_open(folder) and has_data(folder, folder.name))
    there = f"; found there: {', '.join(found[:20]) or 'none'}"
    hint = suggestion(name, found, "; set data_path")
    raise InputError(f"no data set '{name}' in {data_path}{there}{hint}", kind="unknown", about="dataset")


def built_in_folder() -> str:
    """Folder of RecBole's own copy of ml-100k."""
    return str(recbole_folder() / "config" / ".." / "dataset_example" / BUILT_IN)


def is_built_in(folder: str) -> bool:
    """Whether a folder is RecBole's own copy of ml-100k, of this or of another installation."""
    parts = Path(os.path.normpath(folder)).parts
    return parts[-3:] == ("recbole", "dataset_example", BUILT_IN)


def _refuse_a_table(name: str) -> None:
    """Say how a file that is named in place of a data set becomes one."""
    match = _TABLE.fullmatch(Path(name).name)
    if match is not None:
        called = re.sub(r"\W+", "-", match.group(1)).strip("-").lower() or "mine"
        command = f"recbole-llm import {shlex.quote(name)} --name={called}"
        message = f"'{name}' is a file, not a data set; make one of it with: {command}, then give --dataset={called}"
        raise InputError("dataset", message, kind="file")


def own_properties(name: str, data_path: str) -> Path | None:
    """The property file that lies beside the atomic files of a data set, as ``recbole-llm import`` writes it."""
    for folder in (Path(data_path) / name, Path(data_path)):
        if _is_open(folder) and has_data(folder, name) and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    return None


def has_data(folder: Path, name: str) -> bool:
    """Whether a folder holds interactions of a data set, whole (``<name>.inter``) or split (``<name>.train.inter``).

    Raises:
        InputError: it cannot be read.
    """
    return any(file.name.startswith(f"{name}.") and file.name.endswith(".inter") for file in _files_in(folder))


def _files_in(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where there is none.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        message = f"the folder {folder} cannot be read ({error.strerror}); make it readable, or give another one"
        raise InputError("data_path", message, kind="file") from error


def _is_open(folder: Path) -> bool:
    """Whether a folder can be looked into; others beside the one that is asked for do not matter."""
    try:
        _files_in(folder)
    except InputError:
        return False
    return True
