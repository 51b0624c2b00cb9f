"""Headers of a data set's files, checked against the columns that the settings name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import combinations
from pathlib import Path

from recbole_llm.data.filter_checks import (
    additional_suffixes,
    check_no_filters,
    check_value_filters,
    file_columns,
    file_suffixes,
    loaded_columns,
)
from recbole_llm.data.labels import label_column, missing_label
from recbole_llm.data.lines import Format, read_header
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError

OWN_COLUMNS = ("sample_id", "n_before")  # what rows are numbered by; see recbole_llm.data.rows


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
                    f"{key}: {file} has no column '{field}', it has {_listed(columns)}{parted}", kind="data"
                )
            if key == "threshold" and columns[field] != "float":
                raise InputError(
                    f"threshold: column '{field}' of {file} has type {columns[field]}, not float; name a column of "
                    "numbers, or change its type in the header",
                    kind="data",
                )
        if label_column(config) and not config["threshold"] and config["LABEL_FIELD"] not in columns:
            raise InputError(missing_label(config, columns), kind="data")
    check_value_filters(config)
    _check_side_files(config)
    _check_names(config)
    _check_aliases(config)
    _check_features(config)


def _check_side_files(config: Settings) -> None:
    """Refuse files of users and items without the column that says whom or what a line is about."""
    for suffix, key in (("user", "USER_ID_FIELD"), ("item", "ITEM_ID_FIELD")):
        if loaded_columns(config, suffix):
            _check_id_column(config, suffix, key)


def _check_id_column(config: Settings, suffix: str, key: str) -> None:
    """Refuse a file without a column of ids, or one that is not loaded.

    Args:
        config: the model's config, or its resolved settings.
        suffix: ending of the file.
        key: the setting that names the column.
    """
    field, columns, file = config[key], file_columns(config, suffix), f"{config['dataset']}.{suffix}"
    if field not in columns:
        raise InputError(key, f"{file} has no column '{field}', it has {_listed(columns)}", kind="data")
    if field not in loaded_columns(config, suffix):
        raise InputError("load_col", f"column '{field}' of {file} is not loaded; add it to the list", kind="data")


def _check_names(config: Settings) -> None:
    """Refuse columns that would take the place of others: RecBole knows a column by its name alone.

    Joining an item's features to its interactions, it writes over a column of the same name.
    """
    if config["benchmark_filename"] is not None:
        return
    more = [suffix for suffix in additional_suffixes(config) if suffix not in ("inter", "user", "item")]
    tables = {suffix: loaded_columns(config, suffix) for suffix in ("inter", "user", "item", *more)}
    ids = {("inter", "user"): config["USER_ID_FIELD"], ("inter", "item"): config["ITEM_ID_FIELD"]}
    for one, other in combinations(tables, 2):
        for name in tables[one]:
            if name in tables[other] and name != ids.get((one, other)):
                aliases = "; ids have a name of their own there, see alias_of_item_id" if other in more else ""
                raise InputError(
                    "load_col",
                    f"'{name}' is a column of {config['dataset']}.{one} and of {config['dataset']}.{other}; load one "
                    f"of them: take it out of a list in load_col, or name it in unload_col{aliases}",
                    kind="data",
                )
    own = (config["ITEM_LIST_LENGTH_FIELD"], *OWN_COLUMNS)
    for name in tables["inter"]:
        base = name.removesuffix(config["LIST_SUFFIX"])
        if name in own or base != name and base in tables["inter"]:
            raise InputError(
                "load_col",
                f"'{name}' of {config['dataset']}.inter has the name of a column that each row is given, its history "
                "or number; take it out of load_col, or name it in unload_col",
                kind="data",
            )


def _check_aliases(config: Settings) -> None:
    """Refuse further names of ids that no loaded column has."""
    loaded = {name for suffix in file_suffixes(config) for name in loaded_columns(config, suffix)}
    loaded.update(name for _, columns in inter_columns(config) for name in columns)
    for key in ("alias_of_user_id", "alias_of_item_id"):
        for name in config[key] or ():
            if loaded and name not in loaded:
                raise InputError(key, f"no column '{name}' is loaded; name one of a file, or leave it out", kind="data")


def _listed(columns: Mapping[str, str]) -> str:
    """Names of columns; in quotes where blanks at their edges would not be seen."""
    return ", ".join(name if name == name.strip() else f"'{name}'" for name in columns)


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
    check_no_filters(config)
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
    if history in (config["unload_col"] or {}).get("inter", ()):
        message = f"'{history}' is each row's history and cannot be left out; take it off the list for inter"
        raise InputError("unload_col", message, kind="conflict")
    if history in (config["seq_len"] or {}):
        message = f"'{history}' would lose its newest items; leave it out, MAX_ITEM_LIST_LENGTH keeps the newest"
        raise InputError("seq_len", message, kind="conflict")
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
        InputError: a file is not there or lacks a column of ids, or ``load_col`` leaves one out.
    """
    named = {
        "kg": ("HEAD_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "TAIL_ENTITY_ID_FIELD"),
        "link": ("ITEM_ID_FIELD", "ENTITY_ID_FIELD"),
    }
    for suffix, keys in named.items():
        file = Path(config["data_path"]) / f"{config['dataset']}.{suffix}"
        if not file.is_file() or (config["load_col"] is not None and suffix not in config["load_col"]):
            raise InputError(
                "load_col",
                f"{model} needs a knowledge graph, the file {file} with all its columns named; give "
                '--load_col="{inter: [...], kg: [head_id, relation_id, tail_id], link: [item_id, entity_id]}"',
                kind="missing",
            )
        columns = file_columns(config, suffix)
        for key in keys:
            _check_id_column(config, suffix, key)
            field = config[key]
            if columns[field] not in ("token", ""):  # what has no type is refused in reading
                message = (
                    f"column '{field}' of {file.name} has type {columns[field]}; ids are text: write {field}:token"
                )
                raise InputError(key, message, kind="data")


def check_item_field(
    key: str, field: str, dataset: str, columns: Mapping[str, str], loaded: Collection[str] | str, of: str = "item"
) -> None:
    """Refuse a field of items, or of users, that does not exist, is not loaded, or holds no text.

    Args:
        key: the setting that names it.
        field: the field.
        dataset: name of the data set.
        columns: columns of its ``.item`` file, with their types.
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
    loaded = config["load_col"] or {}
    given = loaded.get("inter", "*")
    for key, field in wanted:
        if given != "*" and field not in given:
            raise InputError(
                "load_col",
                f"its list for inter lacks '{field}', the {key}; give inter: [{', '.join([*given, field])}]",
                kind="missing",
            )
        for left_out in ("unload_col", "unused_col"):
            if left_out == "unused_col" and key == "TIME_FIELD":  # dropped once the rows are in order
                continue
            if field in (config[left_out] or {}).get("inter", ()):
                message = f"'{field}', the {key}, cannot be left out; take it off the list for inter"
                raise InputError(left_out, message, kind="conflict")


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
