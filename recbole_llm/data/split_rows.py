"""The rows of a model, as they are split into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from recbole.data.dataset import Dataset, SequentialDataset

import recbole_llm.data.patched  # noqa: F401
from recbole_llm.data.columns import OWN_COLUMNS
from recbole_llm.data.identity import interactions_digest, token_keys
from recbole_llm.data.labels import label_column, row_labels
from recbole_llm.data.row_arrays import row_pairs
from recbole_llm.data.seen_items import SeenItems
from recbole_llm.hashing import hash_arrays, hash_json

SAMPLE_ID, N_BEFORE = OWN_COLUMNS  # its number; how many interactions of its user come before a row's target


@dataclass(frozen=True)
class Rows:
    """The rows of one model, split.

    Attributes:
        train: what the model learns from: sequential rows, or the interactions before the split for a general model.
        valid: sequential rows, one target each.
        test: sequential rows, one target each.
        whole: the data set all of them were cut from.
    """

    train: Dataset
    valid: SequentialDataset
    test: SequentialDataset
    whole: Dataset

    def evaluated(self) -> str:
        """SHA-256 of what is evaluated, equal for all models of one command.

        It is over users, targets, labels and whole histories of the validation and test rows, by their outside ids;
        it does not depend on how much of a history a model reads (``MAX_ITEM_LIST_LENGTH``).
        """
        users, items = (token_keys(self.whole, name) for name in (self.whole.uid_field, self.whole.iid_field))
        arrays = []
        for part in (self.valid, self.test):
            pairs = row_pairs(part)
            arrays += [users[pairs[:, 0]], items[pairs[:, 1]], part.inter_feat[N_BEFORE].numpy()]
            if label_column(part.config):
                arrays.append(row_labels(part))
        return hash_json([interactions_digest(self.whole), hash_arrays(*arrays)])

    def earlier_items(self, part: SequentialDataset) -> list[np.ndarray]:
        """The items that each row's user had before the row's target, shown or not, without the target itself.

        Args:
            part: :attr:`valid` or :attr:`test`, not of presplit files.

        Returns:
            int64 [any] for each row, ascending, an item once.
        """
        had, before = SeenItems.of(self.whole), part.inter_feat[N_BEFORE].tolist()
        pairs = row_pairs(part).tolist()
        return [np.setdiff1d(had[user][:n], [target]) for (user, target), n in zip(pairs, before, strict=True)]
