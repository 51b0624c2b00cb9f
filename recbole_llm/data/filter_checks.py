"""Checks of the settings that filter interactions, by the headers of the files alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_llm.data.lines import Format, read_header
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError

NUMBER = r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_RANGE = rf"[\[(]\s*{NUMBER}\s*,\s*(inf|{NUMBER})\s*[\])]"
_INTERVAL = re.compile(rf"{_RANGE}(\s*;\s*{_RANGE})*")
_LIKE = "write the interval in quotes: --val_interval=\"{'rating': '[3,inf)'}\""
_ALL = "[0,inf)"  # RecBole's word for every number of interactions
_COUNTS = ("user_inter_num_interval", "item_inter_num_interval")


def loaded_columns(config: Settings, suffix: str) -> dict[str, str]:
    """Columns of ``<dataset>.<suffix>`` that ``load_col`` and ``unload_col`` load, with their types."""
    columns = file_columns(config, suffix)
    loaded, unloaded = config["load_col"], (config["unload_col"] or {}).get(suffix, ())
    wanted = "*" if loaded is None else loaded.get(suffix, ())
    return {name: kind for name, kind in columns.items() if (wanted == "*" or name in wanted) and name not in unloaded}


def file_suffixes(config: Settings) -> list[str]:
    """What the files of a data set may end in: those of every data set, and those that the settings name."""
    return list(dict.fromkeys(["inter", "item", "user", *(config["load_col"] or ()), *additional_suffixes(config)]))


def additional_suffixes(config: Settings) -> list[str]:
    """Endings of the further files that ``additional_feat_suffix`` names, one or a list."""
    more = config["additional_feat_suffix"] or ()
    return [more] if isinstance(more, str) else list(more)


def file_columns(config: Settings, suffix: str) -> dict[str, str]:
    """Columns of ``<dataset>.<suffix>``, with their types; none where there is no such file."""
    file = Path(config["data_path"]) / f"{config['dataset']}.{suffix}"
    return read_header(file, Format.from_config(config)) if file.is_file() else {}


def check_no_filters(config: Settings) -> None:
    """Refuse filters of interactions beside files that are split already, whose rows are taken as they stand.

    Raises:
        InputError: the key of the first.
    """
    given = {key: config[key] for key in ("rm_dup_inter", "val_interval", *_COUNTS)}
    given["filter_inter_by_user_or_item"] = config["filter_inter_by_user_or_item"] or None
    for key, value in given.items():
        if value and not (key in _COUNTS and str(value).replace(" ", "") == _ALL):
            raise InputError(
                key,
                f"{value!r} filters interactions, and the rows of benchmark_filename are taken as they stand; filter "
                f"the files themselves and leave {key} out",
                kind="conflict",
            )


def check_value_filters(config: Settings) -> None:
    """Refuse ``val_interval`` where RecBole trips over it, or would keep something else than it says silently.

    Raises:
        InputError: a column that is not there or not loaded, or a value that its type cannot be compared with.
    """
    filters = config["val_interval"]
    if not filters:
        return
    if not isinstance(filters, Mapping):
        raise InputError("val_interval", f"got {filters!r}; {_LIKE}")
    suffixes = file_suffixes(config)
    there = {suffix: loaded_columns(config, suffix) for suffix in suffixes}
    if not there["inter"]:  # RecBole is yet to download it
        return
    for field, value in filters.items():
        kinds = {suffix: columns[field] for suffix, columns in there.items() if field in columns}
        if not kinds:
            raise InputError("val_interval", _where(config, field, suffixes), kind="data")
        for suffix, kind in kinds.items():
            is_time = suffix == "inter" and field == config["TIME_FIELD"]
            _check_value(field, "time" if is_time else kind, value)


def _where(config: Settings, field: str, suffixes: list[str]) -> str:
    """Why a column cannot be filtered by."""
    for suffix in suffixes:
        if field in file_columns(config, suffix):
            return f"column '{field}' of {config['dataset']}.{suffix} is not loaded; name it in load_col"
    return f"no file of {config['dataset']} has a column '{field}'"


def _check_value(field: str, kind: str, value: Any) -> None:
    if kind in ("float", "time") and not _INTERVAL.fullmatch(str(value).strip()):
        what = "times, ISO dates as seconds since 1970 UTC" if kind == "time" else "numbers"
        raise InputError("val_interval", f"'{field}' holds {what}, and {value!r} is not an interval; {_LIKE}")
    if kind == "token" and not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
        raise InputError(
            "val_interval",
            f"'{field}' holds texts, and {value!r} is not a list of texts; give them in quotes: ['a', 'b']",
        )
    if kind.endswith("_seq"):
        raise InputError("val_interval", f"'{field}' holds sequences, and single values are compared; leave it out")
