"""The columns of a data set's files: what the headers say, and whether it is what the settings ask for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from recbole_llm.data.labels import label_column, missing_label
from recbole_llm.data.lines import Format, read_header
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError

_NUMBER = r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_RANGE = rf"[\[(]\s*{_NUMBER}\s*,\s*(inf|{_NUMBER})\s*[\])]"
_INTERVAL = re.compile(rf"{_RANGE}(\s*;\s*{_RANGE})*")


def inter_columns(config: Settings) -> Iterator[tuple[str, dict[str, str]]]:
    """Name of each file of interactions, and its columns with their types; none where RecBole is yet to download it."""
    parts = config["benchmark_filename"]
    names = [config["dataset"]] if parts is None else [f"{config['dataset']}.{part}" for part in parts]
    for file in (Path(config["data_path"]) / f"{name}.inter" for name in names):
        if file.is_file():
            yield file.name, read_header(file, Format.from_config(config))


def check_columns(config: Settings) -> None:
    """Refuse columns that the settings name and the files do not have, or have with another type.

    Raises:
        InputError: which column of which file, and the key that names it.
    """
    wanted = [(key, config[key]) for key in ("USER_ID_FIELD", "ITEM_ID_FIELD")]
    wanted += [("TIME_FIELD", config["TIME_FIELD"])] if config["benchmark_filename"] is None else []
    _check_loaded(config, wanted)
    if label_column(config):
        wanted += [("threshold", field) for field in config["threshold"] or ()]
    for file, columns in inter_columns(config):
        for name, kind in columns.items():
            if not kind:
                raise InputError(
                    f"{file}, line 1: column '{name}' has no type; write {name}:token, or :float for numbers",
                    kind="file",
                )
        for key, field in wanted:
            if field not in columns:
                parted = "" if len(columns) > 1 else "; columns are separated by field_separator, a tab by default"
                raise InputError(
                    f"{key}: {file} has no column '{field}', it has {', '.join(columns)}{parted}", kind="data"
                )
            if key == "threshold" and columns[field] != "float":
                raise InputError(
                    f"threshold: column '{field}' of {file} has type {columns[field]}, not float; name a column of "
                    "numbers, or change its type in the header",
                    kind="data",
                )
        if label_column(config) and not config["threshold"] and config["LABEL_FIELD"] not in columns:
            raise InputError(missing_label(config, columns), kind="data")
        _check_value_filters(config, columns)
    _check_features(config)


def check_presplit(config: Settings) -> None:
    """Refuse a ``benchmark_filename`` whose files are not there or hold no histories.

    Args:
        config: the model's config, or its resolved settings.

    Raises:
        InputError: not three names, a missing file or column, or a history that is no ``token_seq``.
    """
    names = config["benchmark_filename"]
    if names is None:
        return
    if config["windows"] == "full":
        raise InputError(
            "windows", "full makes rows of whole sequences; leave out windows or benchmark_filename", kind="conflict"
        )
    if not isinstance(names, list) or len(names) != 3:
        raise InputError(
            "benchmark_filename",
            f"{names!r} does not name three files, of training, validation and test rows in this "
            "order; give [train, valid, test]",
        )
    folder = Path(config["data_path"])
    missing = [f"{config['dataset']}.{name}.inter" for name in names]
    missing = [name for name in missing if not (folder / name).is_file()]
    if missing:
        raise InputError("benchmark_filename", f"{folder} has no file {', '.join(missing)}", kind="file")
    history = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
    for file, columns in inter_columns(config):
        if columns.get(history) != "token_seq":
            found = f"has type {columns[history]}" if history in columns else f"is missing; it has {', '.join(columns)}"
            raise InputError(
                "benchmark_filename",
                f"{file} must hold each row's history as {history}:token_seq, and the column {found}",
                kind="data",
            )


def check_graph(model: str, config: Settings) -> None:
    """Refuse a model of knowledge graphs on a data set without one, on which RecBole fails with an unrelated error.

    Args:
        model: one of RecBole's models of knowledge graphs.
        config: the model's config, or its resolved settings.

    Raises:
        InputError: a file is not there, or ``load_col`` leaves it out.
    """
    for suffix in ("kg", "link"):
        file = Path(config["data_path"]) / f"{config['dataset']}.{suffix}"
        if not file.is_file() or (config["load_col"] is not None and suffix not in config["load_col"]):
            raise InputError(
                "load_col",
                f"{model} needs a knowledge graph, the file {file} with all its columns named; give "
                '--load_col="{inter: [...], kg: [head_id, relation_id, tail_id], link: [item_id, entity_id]}"',
                kind="missing",
            )


def check_item_field(
    key: str, field: str, dataset: str, columns: Mapping[str, str], loaded: Collection[str] | str, of: str = "item"
) -> None:
    """Refuse a field of items, or of users, that does not exist, is not loaded, or holds no text.

    Args:
        key: the setting that names it.
        field: the field.
        dataset: name of the data set.
        columns: of its ``.item`` file, with their types.
        loaded: the item fields that are loaded; ``"*"`` for all.
        of: ``item``, or ``user`` for the ``.user`` file.

    Raises:
        InputError: what is wrong, and what to do.
    """
    if field not in columns:
        there = ", ".join(columns) or "none"
        problem = (
            f"data set {dataset!r} has no {of} field {field!r} (its {of} fields: {there}); name one of them, or add "
            f"the field to the .{of} file"
        )
    elif loaded != "*" and field not in loaded:
        problem = f"{of} field {field!r} exists in {dataset}.{of} but load_col does not load it; add it to load_col"
    elif columns[field] not in ("token", "token_seq"):
        problem = (
            f"{of} field {field!r} of data set {dataset!r} has type {columns[field]}, not text; declare it as token or "
            f"token_seq in the header of the .{of} file"
        )
    else:
        return
    raise InputError(key, problem, kind="data")


def _check_loaded(config: Settings, wanted: list[tuple[str, str]]) -> None:
    """Refuse lists of columns to load, or to leave out, that miss one without which there are no rows."""
    loaded, unloaded = (config[key] or {} for key in ("load_col", "unload_col"))
    given = loaded.get("inter", "*")
    for key, field in wanted:
        if given != "*" and field not in given:
            raise InputError(
                "load_col",
                f"its list for inter lacks '{field}', the {key}; give inter: [{', '.join([*given, field])}]",
                kind="missing",
            )
        if field in unloaded.get("inter", ()):
            raise InputError(
                "unload_col",
                f"'{field}', the {key}, cannot be left out; take it off the list for inter",
                kind="conflict",
            )


def _check_value_filters(config: Settings, columns: Mapping[str, str]) -> None:
    """Refuse intervals that RecBole trips over, or by which it would keep nothing without a word."""
    filters = config["val_interval"]
    if not filters:
        return
    if not isinstance(filters, Mapping):
        raise InputError("val_interval", f"got {filters!r}; {_LIKE}")
    for field, value in filters.items():
        kind = columns.get(field, "")
        if kind.startswith("float") and not _INTERVAL.fullmatch(str(value).strip()):
            raise InputError("val_interval", f"'{field}' holds numbers, and {value!r} is not an interval; {_LIKE}")
        if kind.startswith("token") and not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
            raise InputError(
                "val_interval",
                f"'{field}' holds texts, and {value!r} is not a list of texts; give them in quotes: ['a', 'b']",
            )


_LIKE = "write the interval in quotes: --val_interval=\"{'rating': '[3,inf)'}\""


def _check_features(config: Settings) -> None:
    """Refuse item features that SASRecF, FDSA and GRU4RecF cannot embed; RecBole fails on them inside its layers."""
    features = config["selected_features"]
    file = Path(config["data_path"]) / f"{config['dataset']}.item"
    if not features or not file.is_file():
        return
    if not isinstance(features, list) or not all(isinstance(field, str) for field in features):
        raise InputError("selected_features", f"{features!r} is not allowed; give a list of columns of {file.name}")
    columns = read_header(file, Format.from_config(config))
    for field in features:
        if field not in columns:
            raise InputError(
                "selected_features", f"{file.name} has no column '{field}', it has {', '.join(columns)}", kind="data"
            )
        if columns[field] not in ("token", "token_seq"):
            raise InputError(
                "selected_features",
                f"{config['model']} takes token and token_seq features only, and '{field}' of {file.name} has type "
                f"{columns[field]}; choose another, or declare it as token",
                kind="data",
            )
