"""The items that each user of a data set has had."""

from __future__ import annotations

from typing import Any

import numpy as np


class SeenItems:
    """The items of each user of a data set, those of validation and test included.

    Args:
        users: int64 [interactions], internal ids.
        items: int64 [interactions], internal ids.
        n_users: number of users of the data set, padding included.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, n_users: int) -> None:
        order = np.argsort(users, kind="stable")
        self._items = items[order]
        self._ends = np.bincount(users, minlength=n_users).cumsum()

    @classmethod
    def of(cls, dataset: Any) -> SeenItems:
        """Items seen in a RecBole data set, by its interactions or, where files are presplit, by its rows."""
        if dataset.config["benchmark_filename"] is None:
            return cls(dataset.in_time.users, dataset.in_time.items, dataset.user_num)
        rows = dataset.inter_feat
        users, targets = rows[dataset.uid_field].numpy(), rows[dataset.iid_field].numpy()
        histories = rows[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
        row, index = np.nonzero(histories)  # padding is item 0
        return cls(
            np.concatenate([users, users[row]]), np.concatenate([targets, histories[row, index]]), dataset.user_num
        )

    def __getitem__(self, user: int) -> np.ndarray:
        """int64 [any], the items of a user, an item as often as the user had it."""
        return self._items[self._ends[user - 1] if user else 0 : self._ends[user]]
