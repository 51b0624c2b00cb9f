"""What lists are like: by loops over pairs and items."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.report import category_coverage, intra_list_distance, novelty


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_measures_by_loops(seed, k):
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(7)[:k] for _ in range(4)])
    distances = rng.random((7, 7))
    distances += distances.T
    counts, categories = rng.integers(9, size=7), [rng.choice(5, size=2).tolist() for _ in range(7)]
    spread, covered = intra_list_distance(lists, distances), category_coverage(lists, categories, 5)
    single = category_coverage(lists, [one[0] for one in categories], 5)
    members = np.array([[c in one for c in range(5)] for one in categories])
    np.testing.assert_array_equal(covered, category_coverage(lists, members, 5))
    for same in (members * 1.0, members.astype(int).tolist(), [set(one) for one in categories]):
        np.testing.assert_array_equal(covered, category_coverage(lists, same, 5))
    for row, items in enumerate(lists):
        pairs = [distances[a, b] for a, b in combinations(items, 2)]
        assert spread[row] == pytest.approx(np.mean(pairs) if pairs else 0)
        assert covered[row] == pytest.approx(len({c for item in items for c in categories[item]}) / 5)
        assert single[row] == pytest.approx(len({categories[item][0] for item in items}) / 5)
        shares = [(counts[item] + 1) / (counts.sum() + 7) for item in items]
        assert novelty(lists, counts)[row] == pytest.approx(-np.mean(np.log2(shares)))


def test_genres_as_a_table_of_two_are_no_ids():
    genres = [[1, 0], [1, 0], [0, 1], [1, 1]]
    for form in (genres, np.array(genres), torch.tensor(genres)):
        assert category_coverage([[0, 1], [0, 2], [3, 0]], form, 2).tolist() == [0.5, 1, 1]
    assert category_coverage([[0, 1]], [[0], []], 1).tolist() == [1]  # a list of ids


def test_empty_lists_and_what_is_no_item():
    nothing = np.zeros((2, 0), dtype=int)
    for found in (
        intra_list_distance(nothing, np.ones((3, 3))),
        category_coverage(nothing, [0, 1], 2),
        novelty(nothing, [1]),
    ):
        assert found.tolist() == [0, 0]
    for item in (-1, 2):
        for measure in (
            lambda lists: intra_list_distance(lists, np.zeros((2, 2))),
            lambda lists: category_coverage(lists, [0, 1], 2),
            lambda lists: novelty(lists, [3, 0]),
        ):
            with pytest.raises(ValueError, match=f"item {item} is out of range: there are 2"):
                measure([[0, item]])
    with pytest.raises(ValueError, match="category 2 is out of range: there are 2"):
        category_coverage([[0]], [2], 2)
    with pytest.raises(ValueError, match="counts must be >= 0, not -1"):
        novelty([[0]], [-1, 3])
