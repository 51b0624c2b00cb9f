"""The limits of the checks for leaks, in plain arrays."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_llm.data.leaks import SplitRows, check_interactions, check_rows

NAMES = [f"n{number}" for number in range(60)]


def rows(targets: list[int], times: list[float] | None = None, users: list[int] | None = None) -> SplitRows:
    n = len(targets)
    own = np.arange(1, n + 1) if users is None else np.array(users)
    when = None if times is None else np.array(times, dtype=float)
    return SplitRows(own, np.array(targets), [np.array([50])] * n, when, NAMES, NAMES)


def found(train: SplitRows, test: SplitRows, check: str) -> int:
    return next(one.count for one in check_rows(train, test, "test") if one.check.startswith(check))


@pytest.mark.parametrize(("time", "late"), [(9.0, 1), (10.0, 0), (11.0, 0)])
def test_only_what_is_older_than_a_training_target_is_late(time, late):
    assert found(rows([1], [10.0], [1]), rows([2], [time], [1]), "training after") == late


def test_the_ten_most_frequent_targets_are_counted_the_first_among_them():
    frequent = [item for item in range(1, 13) for _ in range(14 - item)]  # items 1 to 12, ever rarer
    counts = [found(rows(frequent), rows([item]), "popularity") for item in range(1, 13)]
    assert counts == [1] * 10 + [0] * 2


@pytest.mark.parametrize(("length", "twins"), [(3, 0), (4, 1), (5, 1)])
def test_two_users_are_twins_from_four_equal_interactions_on(length, twins):
    users, items = np.repeat([1, 2], length), np.tile(np.arange(length) + 1, 2)
    own = {one.check: one.count for one in check_interactions(users, items, None, NAMES)}
    assert own["duplicate users"] == twins
