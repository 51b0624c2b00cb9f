"""What is recommended, against counting by hand: short lists, padding, popularity before the split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.evaluation.recbole_metrics import (
    gini_index,
    item_coverage,
    list_metrics,
    mean_value,
    shannon_entropy,
    tail_items,
)
from recbole_llm.settings.metric_names import LIST_METRICS

N_ITEMS = 7
lists = st.lists(st.lists(st.integers(1, N_ITEMS), max_size=4, unique=True), min_size=1, max_size=6)


def padded(rows: list[list[int]]) -> np.ndarray:
    return np.array([[*row, *[0] * (4 - len(row))] for row in rows], dtype=np.int64)


@given(lists)
def test_places_without_an_item_count_for_nothing(rows):
    values = np.array([99.0, 5, 3, 8, 1, 0, 2, 4])  # what stands at padding must not matter
    shown = [item for row in rows for item in row]
    means = [np.mean([values[item] for item in row]) for row in rows if row]
    assert mean_value(padded(rows), values) == pytest.approx(np.mean(means) if means else 0.0)
    assert item_coverage(padded(rows), N_ITEMS) == len(set(shown)) / N_ITEMS
    shares = np.array([shown.count(item) for item in set(shown)]) / max(len(shown), 1)
    entropy = -sum(share * np.log(share) for share in shares) / max(len(shares), 1)
    assert shannon_entropy(padded(rows)) == pytest.approx(entropy)


@given(lists)
def test_the_gini_index_is_the_mean_difference_of_all_items_of_the_catalogue(rows):
    shown = [item for row in rows for item in row]
    counts = np.array([shown.count(item) for item in range(1, N_ITEMS + 1)])
    differences = np.abs(counts[:, None] - counts[None, :]).sum()
    expected = differences / (2 * N_ITEMS * counts.sum()) if counts.sum() else 0.0
    assert gini_index(padded(rows), N_ITEMS) == pytest.approx(expected)


def test_the_tail_is_a_share_of_the_items_or_a_number_of_interactions():
    counts = {1: 5, 2: 1, 3: 1, 4: 9, 5: 2, 6: 3, 7: 4, 8: 8, 9: 7, 10: 6}
    assert tail_items(counts, None) == [2] == tail_items(counts, 0)
    assert tail_items(counts, 0.3) == [2, 3, 5]
    assert sorted(tail_items(counts, 3)) == [2, 3, 5, 6]


def test_what_recboles_table_is_given_has_every_name():
    assert set(list_metrics()) == {name.lower() for name in LIST_METRICS}


class Collected(dict):
    """What RecBole's collector hands to metrics."""

    get = dict.__getitem__


def test_novelty_counts_filled_places_only():
    counts = {1: 3, 2: 1}
    collected = Collected({"data.num_items": 4, "data.count_items": counts})
    bits = -np.log2(np.array([4, 2, 1]) / 7)
    found = list_metrics()["novelty"](collected, np.array([[1, 3], [2, 0], [0, 0]]))
    assert found == pytest.approx(((bits[0] + bits[2]) / 2 + bits[1]) / 2)
