"""Rows of SOFT's protocol (arXiv 2505.20771): windows of full length, cut once for all users in the order of time.

RecBole makes a row of every prefix of a user's sequence. Here a user's windows have the longest history there is; only
a user whose whole sequence fits into one window has a shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

import recbole_llm.data.patched  # noqa: F401


def is_full_window(users: np.ndarray, histories: np.ndarray, longest: int) -> np.ndarray:
    """Which prefixes of the users' sequences are full windows.

    Args:
        users: int [rows], the user of each prefix; a user's prefixes stand together, the shortest first.
        histories: int [rows], length of each history, cut to ``longest``.
        longest: longest history of a window.

    Returns:
        bool [rows]: the history is as long as it may be, or the row is its user's last.
    """
    is_last = np.ones(len(users), dtype=bool)
    is_last[:-1] = users[1:] != users[:-1]
    return np.logical_or(is_last, histories == longest)


def temporal_cuts(n_rows: int, shares: Sequence[float]) -> list[int]:
    """Where rows in the order of time are cut: at the floor of the cumulative shares.

    The shares are taken as the decimals they are written as, so that 0.8 + 0.1 of 10 rows are 9 rows.

    Args:
        n_rows: how many rows there are.
        shares: shares of each part, >= 0; they need not add up to 1.

    Returns:
        The end of each part; the last is ``n_rows``.
    """
    exact = [Fraction(str(share)) for share in shares]
    return [math.floor(n_rows * sum(exact[: part + 1]) / sum(exact)) for part in range(len(exact))]


_Rows: Any = object  # a mixin before a data set, whose fields it reads: untyped, as RecBole is


class _FullWindows(_Rows):
    """What makes full windows of RecBole's data sets; mixed in before one of their classes.

    The interactions come in the exact order of time (:mod:`recbole_llm.data.time_order`).
    """

    def data_augmentation(self) -> None:
        """RecBole's rows, without those that are no full windows, in the order of their targets."""
        self.inter_feat: Interaction
        users = self.inter_feat[self.uid_field].numpy()
        by_user = np.argsort(users, kind="stable")
        is_target = np.zeros(len(users), dtype=bool)
        is_target[1:] = users[by_user][1:] == users[by_user][:-1]
        super().data_augmentation()
        rows = self.inter_feat
        lengths = rows[self.item_list_length_field].numpy()
        full = is_full_window(rows[self.uid_field].numpy(), lengths, self.max_item_list_len)
        in_time = np.argsort(by_user[is_target][full])
        self.inter_feat = rows[np.flatnonzero(full)[in_time]]

    def split_by_ratio(self, ratios: Sequence[float], group_by: str | None = None) -> list[Dataset]:
        """Cut rows by shares; a cut over all users is at the floor of the cumulative shares, unlike RecBole's."""
        if group_by is not None:
            return list(super().split_by_ratio(ratios, group_by))
        self._drop_unused_col()
        ends = temporal_cuts(len(self), ratios)
        return [self.copy(self.inter_feat[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    def __reduce__(self) -> tuple[Any, ...]:  # RecBole pickles data sets, and the mixed class has no module to be in
        return _restore, (type(self).__bases__[1], self.__dict__)


@cache
def with_full_windows(rows_class: type) -> Any:
    """The class of data sets like the given one whose rows are full windows."""
    return type(f"FullWindow{rows_class.__name__}", (_FullWindows, rows_class), {})


def _restore(rows_class: type, state: dict[str, Any]) -> Dataset:
    restored = object.__new__(with_full_windows(rows_class))
    restored.__dict__.update(state)
    return restored
