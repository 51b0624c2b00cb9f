"""Ranks and lists, from a table of scores and from what a search has listed, against sorting in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.grounding import Ranking, rank_listed, rank_scores

N_ITEMS = 7
tables = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, 1.5, -2.0, -math.inf]), min_size=N_ITEMS, max_size=N_ITEMS),
    min_size=1,
    max_size=4,
)


def by_sorting(row: list[float], target: int, k: int) -> tuple[int, list[int], list[float]]:
    """Rank of the target, best items and their scores, filled up to k."""
    order = sorted((item for item in range(N_ITEMS) if row[item] > -math.inf), key=lambda item: (-row[item], item))
    missing = [0] * max(0, k - len(order))
    best = order[:k]
    rank = order.index(target) if target in order else -1
    return rank, best + missing, [row[item] for item in best] + [-math.inf] * len(missing)


def as_lists(ranking: Ranking) -> list[tuple[int, list[int], list[float]]]:
    return list(
        zip(ranking.ranks.tolist(), ranking.top_items.tolist(), ranking.top_scores.tolist(), strict=True),
    )


@settings(max_examples=100)
@given(tables, st.integers(1, N_ITEMS + 3), st.integers(0, N_ITEMS - 1), st.booleans())
def test_a_table_is_ranked_as_sorting_ranks_it(rows, k, target, as_tensor):
    table = torch.tensor(rows) if as_tensor else np.array(rows)
    found = rank_scores(table, torch.full((len(rows),), target) if as_tensor else np.full(len(rows), target), k)
    assert as_lists(found) == [by_sorting(row, target, k) for row in rows]
    assert (found.ranks.dtype, found.top_items.dtype, found.top_scores.dtype) == (np.int64, np.int64, np.float64)
    assert rank_scores(table, None, k).ranks.tolist() == [-1] * len(rows)


@settings(max_examples=100)
@given(tables, st.integers(1, N_ITEMS + 3), st.integers(0, N_ITEMS - 1), st.randoms())
def test_listed_items_are_ranked_as_the_table_that_holds_no_others(rows, k, target, random):
    rows = [[-math.inf, *row[1:]] for row in rows]  # item 0 is what fills up a list
    order = list(range(N_ITEMS))
    random.shuffle(order)
    items, scores = np.array([order] * len(rows)), np.array(rows)[:, order]
    targets = np.full(len(rows), target)
    assert as_lists(rank_listed(items, scores, targets, k)) == as_lists(rank_scores(np.array(rows), targets, k))
    assert as_lists(rank_listed(items[:, :0], scores[:, :0], targets, k)) == as_lists(Ranking.nothing(len(rows), k))


def test_batches_join_and_rows_spread():
    first, second = rank_scores([[0.0, 2.0, 1.0]], [2], 2), rank_scores([[0.0, 1.0, 2.0]], [2], 2)
    both = Ranking.join([first, second])
    assert len(both) == 2 and as_lists(both) == as_lists(first) + as_lists(second)
    spread = both.spread([3, 1], 4)
    assert spread.ranks.tolist() == [-1, 0, -1, 1]
    assert spread.top_items.tolist() == [[0, 0], [2, 1], [0, 0], [1, 2]]


def test_scores_that_are_no_numbers_and_empty_lists_are_refused():
    with pytest.raises(ValueError, match="scores of row 1 are not all numbers"):
        rank_scores([[0.0, 1.0], [0.0, math.nan]], [1, 1], 1)
    for ranked in (
        lambda: rank_scores([[0.0]], [0], 0),
        lambda: rank_listed(np.ones((1, 1), int), np.ones((1, 1)), [1], 0),
    ):
        with pytest.raises(ValueError, match="k must be at least 1"):
            ranked()
