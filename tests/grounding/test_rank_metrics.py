"""Metrics of rows with one target, by its rank alone: their definitions on a list of hits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.grounding.rank_metrics import RANK_METRICS, hit_at, metric_means

RANKS = st.lists(st.integers(-1, 30), min_size=1, max_size=8)
PLACES = [0, 1, 4, 5, 9, 10, 49, 50, 1000, 3]
ORACLE = [(1, 0.1, 0.1), (5, 0.4, 0.244845911888), (10, 0.6, 0.309373113231)]
ORACLE += [(20, 0.7, 0.337267407796), (50, 0.8, 0.354896551235)]


@pytest.mark.parametrize("k, hit, ndcg", ORACLE)
def test_numeric_example(k, hit, ndcg):
    means = metric_means(PLACES, [k])
    assert list(means) == [f"recall@{k}", f"ndcg@{k}", f"mrr@{k}", f"hit@{k}"]
    assert means[f"hit@{k}"] == means[f"recall@{k}"] == pytest.approx(hit)
    assert means[f"ndcg@{k}"] == pytest.approx(ndcg, abs=1e-12)
    assert means[f"mrr@{k}"] == pytest.approx(sum(1 / (r + 1) for r in PLACES if r < k) / len(PLACES))


@given(RANKS, st.integers(1, 40))
def test_metrics_are_sums_over_the_places_of_a_list_with_one_hit(ranks, k):
    gain = {
        "recall": lambda place: 1.0,
        "hit": lambda place: 1.0,
        "mrr": lambda place: 1 / (place + 1),
        "ndcg": lambda place: 1 / math.log2(place + 2),
    }
    means = metric_means(ranks, [k])
    assert set(RANK_METRICS) == set(gain) and set(means) == {f"{name}@{k}" for name in gain}
    for name, of_place in gain.items():
        expected = [sum(of_place(place) for place in range(k) if place == rank) for rank in ranks]
        np.testing.assert_allclose(RANK_METRICS[name](ranks, k), expected, rtol=1e-12)
        assert means[f"{name}@{k}"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("name", sorted(RANK_METRICS))
def test_what_is_no_rank_and_no_cut_off_is_refused(name):
    for cut_off in (0, -1):
        with pytest.raises(ValueError, match="the cut-off must be at least 1"):
            RANK_METRICS[name]([0, 1], cut_off)
    for ranks in ([0, -2], [[0, 1]], 3):
        with pytest.raises(ValueError, match=r"ranks must be \[rows\], 0 for the best"):
            RANK_METRICS[name](ranks, 5)


@pytest.mark.parametrize("ranks", [[0.5], [float("nan")], [-2], [1, 2.5]])
def test_what_is_no_rank_is_refused(ranks):
    with pytest.raises(ValueError, match="ranks must be"):
        hit_at(ranks, 2)
