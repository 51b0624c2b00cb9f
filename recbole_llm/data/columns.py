"""The columns of interactions: what the files hold, and whether it is what the settings ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_llm.data.labels import label_column
from recbole_llm.errors import InputError


def check_columns(config: Any) -> None:
    """Refuse names of user, item and time columns that the interactions do not have; RecBole trips over them."""
    named = ["USER_ID_FIELD", "ITEM_ID_FIELD", *(["TIME_FIELD"] if config["benchmark_filename"] is None else [])]
    wanted = [(key, config[key]) for key in named]
    if label_column(config):
        wanted += [("threshold", field) for field in config["threshold"] or ()]
    for file, columns in inter_columns(config):
        for name, kind in columns.items():
            if not kind:
                raise InputError(f"{file}: column '{name}' has no type; write {name}:token, or :float for numbers")
        for key, field in wanted:
            if field not in columns:
                parted = "" if len(columns) > 1 else "; columns are separated by field_separator, a tab by default"
                raise InputError(f"{key}: {file} has no column '{field}', it has {', '.join(columns)}{parted}")
            if key == "threshold" and columns[field] != "float":
                raise InputError(
                    f"threshold: column '{field}' of {file} has type {columns[field]}, not float; name a column of "
                    "numbers, or change its type in the header"
                )


def inter_columns(config: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """Name of each file of interactions, and its columns with their types; none where RecBole is yet to download it."""
    parts = config["benchmark_filename"]
    names = [config["dataset"]] if parts is None else [f"{config['dataset']}.{part}" for part in parts]
    for file in (Path(config["data_path"]) / f"{name}.inter" for name in names):
        if file.is_file():
            with open(file, encoding=config["encoding"] or "utf-8") as lines:
                header = next(lines, "").rstrip("\n")
            parted = [column.partition(":") for column in header.split(config["field_separator"])]
            yield file.name, {name: kind for name, _, kind in parted}
