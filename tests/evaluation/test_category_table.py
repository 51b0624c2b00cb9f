"""Metrics of whole lists by category, against their definitions item by item."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.evaluation.category_table import CategoryTable

NAMES = ("crime", "drama", "war", "comedy")
seeds = st.integers(0, 10_000)


def world(seed, n_items=9):
    rng = np.random.default_rng(seed)
    return [
        [],
        *([str(name) for name in rng.choice(NAMES, int(rng.integers(0, 4)), replace=False)] for _ in range(n_items)),
    ]


def lists(seed, rows=4, k=5, n_items=9):
    rng = np.random.default_rng(seed + 1)
    found = np.array([rng.choice(np.arange(1, n_items + 1), k, replace=False) for _ in range(rows)])
    found[0, 3:] = 0
    return found


def jaccard(a, b):
    return 1 - len(set(a) & set(b)) / len(set(a) | set(b))


@given(seeds)
@settings(max_examples=40)
def test_distance_and_coverage_by_their_definitions(seed):
    kinds, items = world(seed), lists(seed)
    table = CategoryTable(kinds)
    n_kinds = len({name for own in kinds for name in own})
    for row, found, covered in zip(items, table.intra_list_distance(items), table.coverage(items), strict=True):
        own = [kinds[item] for item in row if item and kinds[item]]
        pairs = [jaccard(a, b) for a, b in combinations(own, 2)]
        assert found == pytest.approx(np.mean(pairs) if pairs else 0.0)
        assert covered == pytest.approx(len({name for one in own for name in one}) / max(n_kinds, 1))


def gain(kinds, row, intents):
    met, total = dict.fromkeys(intents, 0), 0.0
    for position, item in enumerate(row):
        for intent in set(kinds[item]) & set(intents):
            total += 0.5 ** met[intent] / np.log2(position + 2)
            met[intent] += 1
    return total


@given(seeds)
@settings(max_examples=25)
def test_alpha_ndcg_by_its_definition(seed):
    kinds, items = world(seed, 6), lists(seed, k=3, n_items=6)
    targets = np.random.default_rng(seed).integers(1, 7, len(items))
    found = CategoryTable(kinds).alpha_ndcg(items, targets)
    for row, target, value in zip(items, targets, found, strict=True):
        if not kinds[target]:
            assert np.isnan(value)
            continue
        best = max(gain(kinds, order, kinds[target]) for order in permutations(range(1, 7), 3))
        own = gain(kinds, row, kinds[target])
        # The greedy list that it is measured by has at least (1 - 1/e) of the best list's gain.
        assert own / best - 1e-9 <= value <= own / best / (1 - 1 / np.e) + 1e-9


def test_alpha_ndcg_of_a_worked_example():
    """Intents a and b: the item of both, then one of a; best is the item of both, then any other."""
    table = CategoryTable([[], ["a", "b"], ["a"], ["b"], ["c"]])
    ideal = 2 + 0.5 / np.log2(3)
    assert table.alpha_ndcg(np.array([[1, 2], [2, 3], [4, 1]]), np.array([1, 1, 1])) == pytest.approx(
        [1.0, (1 + 1 / np.log2(3)) / ideal, 2 / np.log2(3) / ideal]
    )
