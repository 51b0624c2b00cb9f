"""Checks that all models of a command have the same rows, by the ids of the files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from recbole.data.dataset import Dataset, SequentialDataset

import recbole_llm.data.patched  # noqa: F401
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_arrays

_BLOCK = 1 << 18  # rows compared at a time


def check_numbering(whole: Dataset, other: Dataset) -> None:
    """Refuse a data set under whose internal ids a model's scores would be taken for those of other items.

    Args:
        whole: the data set of the evaluated rows.
        other: the one that a model learns from.

    Raises:
        InputError: how many ids differ.
    """
    for field in (whole.uid_field, whole.iid_field):
        own, theirs = (dataset.field2id_token[field] for dataset in (whole, other))
        if len(own) != len(theirs) or (own != theirs).any():
            n = max(len(own), len(theirs)) - int((own[: len(theirs)] == theirs[: len(own)]).sum())
            raise InputError(
                "model",
                f"{other.config['model']}'s data set class {type(other).__name__} numbers {n} of {len(own) - 1} "
                f"{field} otherwise than the evaluated rows do; it cannot be evaluated on them",
                kind="conflict",
            )


def place_rows(whole: SequentialDataset, parts: Sequence[SequentialDataset]) -> list[np.ndarray]:
    """How many interactions of its user come before each row's target; each row is checked against them.

    A user's rows are for the last of the user's interactions, one each, and a row's history is what comes right before
    its target. That is compared for every row of every command.

    Args:
        whole: the data set, whose ``in_time`` holds all interactions.
        parts: the rows that were cut from it, all of them.

    Returns:
        int64 [rows] for each part.

    Raises:
        InputError: a data set class makes other rows, or leaves interactions out.
    """
    if lost := whole.reading.unexplained:
        raise InputError(
            "model",
            f"{whole.config['model']}'s data set class {type(whole).__name__} leaves out {lost} of "
            f"{whole.reading.interactions} interactions; it cannot be evaluated on the rows of the other models",
            kind="conflict",
        )
    users, items = whole.in_time.users, whole.in_time.items
    by_user = np.argsort(users, kind="stable")
    items, counts = items[by_user], np.bincount(users, minlength=whole.user_num)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    row_users = np.concatenate([part.inter_feat[part.uid_field].numpy() for part in parts])
    order = np.argsort(row_users, kind="stable")
    n_rows = np.bincount(row_users, minlength=whole.user_num)
    nth = np.empty(len(row_users), dtype=np.int64)
    nth[order] = np.arange(len(row_users)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    before = counts[row_users] - n_rows[row_users] + nth
    ends = np.cumsum([len(part) for part in parts])
    placed = np.split(before, ends[:-1])
    wrong = sum(_count_wrong(part, own, items, starts) for part, own in zip(parts, placed, strict=True))
    if wrong:
        raise InputError(
            "model",
            f"{wrong} of {len(before)} rows of {whole.config['model']}'s data set class {type(whole).__name__} are not "
            "a user's next interaction after the newest ones before it; it cannot be evaluated beside other models",
            kind="conflict",
        )
    return placed


def _count_wrong(part: SequentialDataset, before: np.ndarray, items: np.ndarray, starts: np.ndarray) -> int:
    """Rows whose target or history are not the interactions at their position."""
    rows, limit = part.inter_feat, part.config["MAX_ITEM_LIST_LENGTH"]
    users, targets = rows[part.uid_field].numpy(), rows[part.iid_field].numpy()
    histories = rows[part.iid_field + part.config["LIST_SUFFIX"]].numpy()
    lengths = rows[part.item_list_length_field].numpy()
    wrong = 0
    for start in range(0, len(part), _BLOCK):
        block = slice(start, start + _BLOCK)
        ends = starts[users[block]] + before[block]
        right = (before[block] >= 1) & (items[ends] == targets[block])
        right &= lengths[block] == np.minimum(before[block], limit)
        positions = np.arange(histories.shape[1])[None, :]
        real = positions < lengths[block, None]
        expected = items[np.where(real, ends[:, None] - lengths[block, None] + positions, 0)]
        right &= ((histories[block] == expected) | ~real).all(axis=1)
        wrong += int((~right).sum())
    return wrong


def token_keys(dataset: Dataset, field: str) -> np.ndarray:
    """A number for each outside id, by its text alone. Returns: uint64 [ids], by internal id."""
    tokens = dataset.field2id_token[field]
    digests = (hashlib.blake2b(str(token).encode("utf-8", "surrogatepass"), digest_size=8).digest() for token in tokens)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def interactions_digest(whole: SequentialDataset) -> str:
    """SHA-256 over every user's interactions in the order of time, by outside ids; of presplit files, their rows."""
    users, items = token_keys(whole, whole.uid_field), token_keys(whole, whole.iid_field)
    if whole.config["benchmark_filename"] is None:
        found = whole.in_time
        order = np.argsort(users[found.users], kind="stable")
        return hash_arrays(users[found.users][order], items[found.items][order])
    rows = whole.inter_feat
    pairs = users[rows[whole.uid_field].numpy()], items[rows[whole.iid_field].numpy()]
    histories, lengths = rows[whole.iid_field + whole.config["LIST_SUFFIX"]].numpy(), rows[whole.item_list_length_field]
    real = np.arange(histories.shape[1]) < lengths.numpy()[:, None]
    return hash_arrays(*pairs, items[histories[real]], lengths.numpy())
