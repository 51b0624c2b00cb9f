"""Metrics equal their definitions and RecBole-independent numbers; the bootstrap finds what is there and no more."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.evaluation import bootstrap
from recbole_llm.evaluation.statistics import minimal_detectable_difference, paired_bootstrap
from recbole_llm.grounding.rank_metrics import hit_at, metric_means, mrr_at, ndcg_at, recall_at

RANKS = [0, 1, 4, 5, 9, 10, 49, 50, 1000, 3]
ORACLE = [(1, 0.1, 0.1), (5, 0.4, 0.244845911888), (10, 0.6, 0.309373113231)]
ORACLE += [(20, 0.7, 0.337267407796), (50, 0.8, 0.354896551235)]


@pytest.mark.parametrize("k, hit, ndcg", ORACLE)
def test_numeric_example(k, hit, ndcg):
    means = metric_means(RANKS, [k])
    assert list(means) == [f"recall@{k}", f"ndcg@{k}", f"mrr@{k}", f"hit@{k}"]
    assert means[f"hit@{k}"] == means[f"recall@{k}"] == pytest.approx(hit)
    assert means[f"ndcg@{k}"] == pytest.approx(ndcg, abs=1e-12)
    assert means[f"mrr@{k}"] == pytest.approx(sum(1 / (r + 1) for r in RANKS if r < k) / len(RANKS))


@given(st.integers(0, 60), st.integers(1, 50))
def test_one_row_by_its_definition(rank, k):
    inside = rank < k
    assert hit_at([rank], k)[0] == recall_at([rank], k)[0] == inside
    assert ndcg_at([rank], k)[0] == pytest.approx(inside / math.log2(rank + 2))
    assert mrr_at([rank], k)[0] == pytest.approx(inside / (rank + 1))


def test_wrong_ranks_are_refused():
    with pytest.raises(ValueError, match="cut-off"):
        hit_at([0], 0)
    for ranks in ([-1], [[0]]):
        with pytest.raises(ValueError, match="ranks must be"):
            ndcg_at(ranks, 5)


def test_bootstrap_interval_agrees_with_the_normal_one():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 1, 400), rng.normal(0, 1, 400)
    outcome = paired_bootstrap(a, b)
    difference = a - b
    error = difference.std(ddof=1) / math.sqrt(400)
    assert outcome.mean_difference == pytest.approx(a.mean() - b.mean())
    assert outcome.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.1 * error)
    assert outcome.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.1 * error)
    normal = 1 + math.erf(-abs(difference.mean()) / error / math.sqrt(2))
    assert outcome.p_value == pytest.approx(normal, abs=0.02)
    assert (outcome.n, outcome.n_seeds) == (400, 1)


def test_bootstrap_of_two_users_counts_all_four_resamples():
    """Differences 1 and 3: means 1, 2, 2, 3; centred they never lie 2 from the observed mean."""
    outcome = paired_bootstrap([1, 3], [0, 0], n_resamples=4000)
    assert (outcome.mean_difference, outcome.low, outcome.high) == (2, 1, 3)
    assert outcome.p_value == pytest.approx(1 / 4001)
    half = paired_bootstrap([0, 2], [0, 0], n_resamples=4000)  # means 0, 1, 1, 2: half of them lie 1 from 1
    assert half.p_value == pytest.approx(0.5, abs=0.04)


def test_bootstrap_symmetry_seed_and_equal_models():
    rng = np.random.default_rng(2)
    a, b = rng.random(50), rng.random(50)
    forth, back = paired_bootstrap(a, b, seed=5), paired_bootstrap(b, a, seed=5)
    assert forth == paired_bootstrap(a, b, seed=5) != paired_bootstrap(a, b, seed=6)
    assert (back.mean_difference, back.p_value) == pytest.approx((-forth.mean_difference, forth.p_value))
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))
    same = paired_bootstrap(a, a)
    assert (same.mean_difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_seeds_are_averaged_per_user_first(monkeypatch):
    rng = np.random.default_rng(3)
    a, b = rng.random((3, 40)), rng.random((2, 40))
    outcome = paired_bootstrap(a, b, n_resamples=500)
    single = paired_bootstrap(a.mean(axis=0), b.mean(axis=0), n_resamples=500)
    assert (outcome.low, outcome.high, outcome.p_value) == (single.low, single.high, single.p_value)
    assert (outcome.n, outcome.n_seeds) == (40, 3)
    monkeypatch.setattr(bootstrap, "_BLOCK_ELEMENTS", 100)  # blocks continue one stream of random numbers
    assert paired_bootstrap(a, b, n_resamples=500) == outcome


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(4)
    p_values = [paired_bootstrap(rng.normal(size=60), rng.normal(size=60), n_resamples=300).p_value for _ in range(300)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


def test_minimal_detectable_difference():
    values = np.array([0.0, 2.0] * 50)
    expected = (1.959963985 + 0.841621234) * values.std(ddof=1) / 10
    assert minimal_detectable_difference(values) == pytest.approx(expected)
    assert minimal_detectable_difference(np.stack([values - 1, values + 1])) == pytest.approx(expected)
    assert (
        minimal_detectable_difference(values, power=0.9) > expected > minimal_detectable_difference(values, alpha=0.1)
    )


def test_the_minimal_detectable_difference_is_detected_as_often_as_promised():
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(400, 100))
    difference = minimal_detectable_difference(rng.normal(size=100_000)) * math.sqrt(1000)  # for 100 users
    z = (noise + difference).mean(axis=1) / (1 / math.sqrt(100))
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.06)


def test_wrong_comparisons_are_refused():
    for a, b in [([1, 2], [1]), ([], []), ([[[1]]], [[[1]]])]:
        with pytest.raises(ValueError, match="same users"):
            paired_bootstrap(a, b)
    with pytest.raises(ValueError, match="NaN"):
        paired_bootstrap([1, np.nan], [0, 0])
    with pytest.raises(ValueError, match="confidence"):
        paired_bootstrap([1], [0], confidence=95)
    with pytest.raises(ValueError, match="two users"):
        minimal_detectable_difference([1.0])
    with pytest.raises(ValueError, match="power"):
        minimal_detectable_difference([1.0, 2.0], power=80)
