"""Files that are split already: ``benchmark_filename: [train, valid, test]``, a row with its history on every line."""

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
