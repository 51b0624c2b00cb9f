"""Files that are split already: ``benchmark_filename: [train, valid, test]``, a row with its history on every line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataset import SequentialDataset

import recbole_llm.data.patched  # noqa: F401
from recbole_llm.data.columns import inter_columns
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)


def prepare_presplit(config: Any) -> None:
    """Check the three files and have their histories read under the ids of the items.

    RecBole numbers ``item_id_list`` apart from ``item_id`` unless ``alias_of_item_id`` names it, and then every history
    is of other items. So the alias is set here, and the column is loaded whatever ``load_col`` says.

    Args:
        config: the model's config; without ``benchmark_filename`` nothing is done.

    Raises:
        InputError: not three names, a missing file or column, or a history that is no ``token_seq``.
    """
    names = config["benchmark_filename"]
    if names is None:
        return
    if config["windows"] == "full":
        raise InputError(
            "windows: full makes rows of whole sequences; leave out windows or benchmark_filename", kind="conflict"
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
    _load(config, history)
    aliases = list(config["alias_of_item_id"] or ())
    if history not in aliases:
        config["alias_of_item_id"] = [*aliases, history]
        log.info("alias_of_item_id is [%s]: histories have the ids of items.", ", ".join([*aliases, history]))


def _load(config: Any, history: str) -> None:
    load_col = config["load_col"]
    if load_col is not None and load_col.get("inter", "*") != "*" and history not in load_col["inter"]:
        config["load_col"] = {**load_col, "inter": [*load_col["inter"], history]}
        log.info("load_col: '%s' is loaded as well, the histories.", history)


def log_unseen(parts: Sequence[SequentialDataset]) -> None:
    """Tell how many users and items only the validation or the test rows have.

    Args:
        parts: training, validation and test rows.
    """
    seen = _users_and_items(parts[0])
    for name, part in zip(("validation", "test"), parts[1:], strict=True):
        counts = [len(np.setdiff1d(own, known)) for own, known in zip(_users_and_items(part), seen, strict=True)]
        if any(counts):
            log.warning("%d users and %d items of the %s file are in no training row.", counts[0], counts[1], name)


def _users_and_items(part: SequentialDataset) -> tuple[np.ndarray, np.ndarray]:
    rows = part.inter_feat
    histories = rows[part.iid_field + part.config["LIST_SUFFIX"]].numpy().ravel()
    return rows[part.uid_field].numpy(), np.union1d(rows[part.iid_field].numpy(), histories[histories > 0])
