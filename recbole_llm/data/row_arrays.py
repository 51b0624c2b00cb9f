"""What rows hold, as arrays: pairs, histories, a digest of both, and the newest part of histories."""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset

from recbole_llm.data.labels import label_column, row_labels
from recbole_llm.hashing import hash_arrays


def row_pairs(dataset: SequentialDataset) -> np.ndarray:
    """The (user, target) pairs of the rows. Returns: int64 [rows, 2]."""
    rows = dataset.inter_feat
    return np.stack([rows[dataset.uid_field].numpy(), rows[dataset.iid_field].numpy()], axis=1)


def row_histories(dataset: SequentialDataset) -> tuple[np.ndarray, np.ndarray]:
    """Item ids and lengths of the histories, oldest item first. Returns: int64 [rows, longest], int64 [rows]."""
    rows = dataset.inter_feat
    items = rows[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
    return items, rows[dataset.item_list_length_field].numpy()


def find_pairs(pairs: np.ndarray, wanted: np.ndarray) -> np.ndarray | None:
    """For each wanted (user, target) pair its index among others, repeats in their order.

    Args:
        pairs: int64 [rows, 2].
        wanted: int64 [rows, 2].

    Returns:
        int64 [rows]; None where the two are not the same pairs in another order.

    Example:
        >>> find_pairs(np.array([[1, 5], [2, 6]]), np.array([[2, 6], [1, 5]])).tolist()
        [1, 0]
    """
    order, other = np.lexsort(pairs.T), np.lexsort(wanted.T)
    if len(pairs) != len(wanted) or not np.array_equal(pairs[order], wanted[other]):
        return None
    found = np.empty(len(wanted), dtype=np.int64)
    found[other] = order
    return found


def rows_digest(dataset: SequentialDataset) -> str:
    """SHA-256 over users, histories and targets, and their labels: what a training stage depends on."""
    items, lengths = row_histories(dataset)
    real = np.arange(items.shape[1]) < lengths[:, None]
    arrays = [row_pairs(dataset), np.where(real, items, 0)]
    if label_column(dataset.config):
        arrays.append(row_labels(dataset))
        likes = dataset.label_field + dataset.config["LIST_SUFFIX"]
        if likes in dataset.inter_feat:
            arrays.append(np.where(real, dataset.inter_feat[likes].numpy() > 0, False))
    return hash_arrays(*arrays)


def newest(values: torch.Tensor, lengths: torch.Tensor, limit: int) -> torch.Tensor:
    """The newest entries of histories, the oldest of them first.

    Args:
        values: [rows, any, ...], padded after each history.
        lengths: int64 [rows], of the histories.
        limit: how many stay.

    Returns:
        [rows, limit, ...]; 0 behind a shorter history.

    Example:
        >>> newest(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1]), 2).tolist()
        [[2, 3], [4, 0]]
    """
    width = max(limit, int(lengths.max())) if len(lengths) else limit
    wide = values.new_zeros((len(values), max(width, values.shape[1]), *values.shape[2:]))
    wide[:, : values.shape[1]] = values
    columns = (lengths - limit).clamp(min=0)[:, None] + torch.arange(limit)
    return wide[torch.arange(len(values))[:, None], columns]
