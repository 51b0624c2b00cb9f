"""Presplit files: ``benchmark_filename: [train, valid, test]``, with a row and its history on every line."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from recbole.data.dataset import SequentialDataset

import recbole_llm.data.patched  # noqa: F401
from recbole_llm.data.columns import check_presplit
from recbole_llm.declare import MutableSettings

log = logging.getLogger(__name__)


def prepare_presplit(config: MutableSettings) -> None:
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
    check_presplit(config)
    history = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
    _load(config, history)
    aliases = list(config["alias_of_item_id"] or ())
    if history not in aliases:
        config["alias_of_item_id"] = [*aliases, history]
        log.info("alias_of_item_id is set to [%s]: histories use the ids of items", ", ".join([*aliases, history]))


def _load(config: MutableSettings, history: str) -> None:
    load_col = config["load_col"]
    if load_col is not None and load_col.get("inter", "*") != "*" and history not in load_col["inter"]:
        config["load_col"] = {**load_col, "inter": [*load_col["inter"], history]}
        log.info("load_col: also loading '%s', the histories", history)


def log_unseen(parts: Sequence[SequentialDataset]) -> None:
    """Tell what may be wrong with three files: what only a later one has, and rows that an earlier one has as well.

    Args:
        parts: training, validation and test rows.
    """
    seen, names = _users_and_items(parts[0]), ("training", "validation", "test")
    for name, part in zip(names[1:], parts[1:], strict=True):
        counts = [len(np.setdiff1d(own, known)) for own, known in zip(_users_and_items(part), seen, strict=True)]
        if any(counts):
            log.warning("%d users and %d items of the %s file are in no training row.", counts[0], counts[1], name)
    keys = [_row_keys(part) for part in parts]
    for earlier, later in ((0, 1), (0, 2), (1, 2)):
        if again := int(np.isin(keys[later], keys[earlier]).sum()):
            log.warning("%d of %d %s rows are %s rows as well.", again, len(keys[later]), names[later], names[earlier])
    _warn_of_separator(parts)


def _row_keys(part: SequentialDataset) -> np.ndarray:
    """A number for each row that equal users, targets and histories share. Returns: uint64 [rows]."""
    columns = np.column_stack([*_pairs(part), _histories(part)]).astype(np.uint64)
    factors = np.random.default_rng(0).integers(2**64, size=columns.shape[1], dtype=np.uint64)
    keys: np.ndarray = (columns * factors).sum(axis=1, dtype=np.uint64)
    return keys


def _warn_of_separator(parts: Sequence[SequentialDataset]) -> None:
    """Tell of histories that were not taken apart: one entry each, and one that holds another separator."""
    histories = [_histories(part) for part in parts if len(part)]
    if any(history[:, 1:].any() for history in histories):
        return
    tokens = parts[0].field2id_token[parts[0].iid_field]
    first = np.unique(np.concatenate([history[:, 0] for history in histories]))
    whole = [str(tokens[item]) for item in first if any(mark in str(tokens[item]) for mark in ",;| ")]
    if whole:
        separator = parts[0].config["seq_separator"]
        message = "No history has more than one item, and one is '%s': is seq_separator, now '%s', right?"
        log.warning(message, whole[0], separator)


def _users_and_items(part: SequentialDataset) -> tuple[np.ndarray, np.ndarray]:
    (users, items), histories = _pairs(part), _histories(part)
    return users, np.union1d(items, histories[histories > 0])


def _pairs(part: SequentialDataset) -> tuple[np.ndarray, np.ndarray]:
    return part.inter_feat[part.uid_field].numpy(), part.inter_feat[part.iid_field].numpy()


def _histories(part: SequentialDataset) -> np.ndarray:
    found: np.ndarray = part.inter_feat[part.iid_field + part.config["LIST_SUFFIX"]].numpy()
    return found
