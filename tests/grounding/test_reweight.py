"""Re-weighting follows its formulas, and the gamma search equals re-weighting and ranking one gamma at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recbole_llm.grounding import (
    COLLABORATIVE_GAMMAS,
    POPULARITY_GAMMAS,
    collaborative_weights,
    gamma_ranks,
    popularity_weights,
    reweight,
    search_gamma,
)

DISTANCES = np.array([(2, 4, 6, 10), (5, 5, 5, 5), (1, 3, 3, 2)], dtype=np.float64)
WEIGHTS = np.array([0, 0.5, 1, 0.25])
ORACLE = [  # gamma, row 1, order of row 1, row 3, order of row 3
    (0, [0, 0.25, 0.5, 1], [0, 1, 2, 3], [0, 1, 1, 0.5], [0, 3, 1, 2]),
    (1, [0, 0.1666666667, 0.25, 0.8], [0, 1, 2, 3], [0, 0.6666666667, 0.5, 0.4], [0, 3, 2, 1]),
    (2, [0, 0.1111111111, 0.125, 0.64], [0, 1, 2, 3], [0, 0.4444444444, 0.25, 0.32], [0, 2, 3, 1]),
    (
        10,
        [0, 0.0043353825, 0.0004882812, 0.1073741824],
        [0, 2, 1, 3],
        [0, 0.0173415299, 0.0009765625, 0.0536870912],
        [0, 2, 1, 3],
    ),
]


def ranks_of(values, targets):
    order = np.argsort(values, axis=1, kind="stable")
    return np.argmax(order == np.asarray(targets)[:, None], axis=1)


@pytest.mark.parametrize("gamma, first, first_order, third, third_order", ORACLE)
@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
def test_numeric_example(convert, gamma, first, first_order, third, third_order):
    weights = np.tile(WEIGHTS, (3, 1)) if gamma == 2 else WEIGHTS
    result = reweight(convert(DISTANCES), convert(weights), gamma)
    assert type(result) is type(convert(DISTANCES)) and result.dtype == convert(DISTANCES).dtype
    np.testing.assert_allclose(np.asarray(result), [first, [0] * 4, third], atol=1e-10)
    order = np.argsort(np.asarray(result), axis=1, kind="stable")
    assert order.tolist() == [first_order, [0, 1, 2, 3], third_order]


def test_numeric_weights():
    np.testing.assert_allclose(popularity_weights([4, 0, 6, 10]), [0.4, 0, 0.6, 1])
    np.testing.assert_allclose(collaborative_weights([[-1.0, 0, 3, 1]]), [[0, 0.25, 1, 0.5]])
    assert popularity_weights(torch.tensor([3, 3])).tolist() == [0, 0]
    assert popularity_weights(np.zeros(3)).tolist() == [0, 0, 0]
    assert collaborative_weights(torch.full((1, 3), 2.0)).tolist() == [[0, 0, 0]]


def test_what_does_not_compete_is_left_out():
    inf = np.inf
    padded = np.insert(DISTANCES, 0, inf, axis=1)
    result = reweight(padded, np.insert(WEIGHTS, 0, 1.0), 3)
    assert (result[:, 0] == inf).all()
    np.testing.assert_array_equal(result[:, 1:], reweight(DISTANCES, WEIGHTS, 3))
    assert reweight(np.full((1, 2), inf), np.zeros(2), 1).tolist() == [[inf, inf]]
    mask = np.array([False, True, True, True])
    np.testing.assert_allclose(popularity_weights([0, 4, 6, 14], mask), [0, 0, 0.2, 1])
    np.testing.assert_allclose(collaborative_weights([[-inf, 1.0, 3, 2]]), [[0, 0, 1, 0.5]])
    assert collaborative_weights(np.full((1, 2), -inf)).tolist() == [[0, 0]]


@pytest.mark.parametrize("gamma", [2000, -2000])
def test_a_boost_beyond_all_numbers_moves_neither_the_nearest_nor_what_does_not_compete(gamma):
    found = reweight([[1.0, 2, 3, np.inf]], [1.0, 1, 0, 1], gamma)
    assert found.tolist() == [[0, 0 if gamma > 0 else np.inf, 1, np.inf]]


finite = st.floats(0, 100, width=32)


@given(hnp.arrays(np.float64, (3, 6), elements=finite), hnp.arrays(np.float64, 6, elements=st.floats(0, 1)), finite)
def test_properties(distances, weights, gamma):
    result = reweight(distances, weights, gamma)
    assert ((result >= 0) & (result <= 1)).all()
    assert (result[distances == distances.min(axis=1, keepdims=True)] == 0).all()
    plain = reweight(distances, weights, 0)
    np.testing.assert_array_equal(plain, reweight(distances, np.zeros(6), gamma))
    spread = np.ptp(distances, axis=1, keepdims=True)
    formula = (distances - distances.min(axis=1, keepdims=True)) / np.where(spread, spread, 1) * (1 + weights) ** -gamma
    np.testing.assert_allclose(result, formula, atol=1e-15)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([np.float32, np.float64]))
def test_gamma_ranks_equal_one_gamma_at_a_time(seed, per_query, dtype):
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 5, size=(7, 12)).astype(dtype)  # many exact ties
    distances[:, rng.integers(0, 12, 3)] = np.inf
    distances[:, 5] = rng.integers(0, 5, 7)
    weights = rng.choice([0, 0.25, 1.0], size=(7, 12) if per_query else 12)
    targets = np.array([rng.choice(np.flatnonzero(np.isfinite(row))) for row in distances])
    gammas = (0, 0.5, 1, 2, 99)
    ranks = gamma_ranks(distances, weights, targets, gammas)
    for gamma, row in zip(gammas, ranks, strict=True):
        np.testing.assert_array_equal(row, ranks_of(reweight(distances, weights, gamma), targets))


def test_gamma_ranks_do_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    distances, weights, targets = rng.random((40, 30)), rng.random((40, 30)), rng.integers(0, 30, 40)
    whole = gamma_ranks(distances, weights, targets, COLLABORATIVE_GAMMAS)
    monkeypatch.setitem(gamma_ranks.__globals__, "_BLOCK_ELEMENTS", 90)
    np.testing.assert_array_equal(gamma_ranks(distances, weights, targets, COLLABORATIVE_GAMMAS), whole)


def test_search_finds_the_first_best_of_every_metric():
    """The popular item 3 is last at gamma 0 (by its id), ties at rank 2 at gamma 1, and cannot pass the nearest."""
    distances = np.tile(DISTANCES[2:, [0, 3, 1, 2]], (2, 1))
    weights = np.array([0, 0, 0, 1.0])
    ranks = gamma_ranks(distances, weights, [3, 3], POPULARITY_GAMMAS)
    assert ranks[:4, 0].tolist() == [3, 2, 1, 1]
    metrics = {
        "hit@2": ("hit", 2),
        "hit@4": ("hit", 4),
        "hit@1": ("hit", 1),
        "best": lambda ranks: -float(ranks.mean()),
    }
    chosen = search_gamma(distances, weights, [3, 3], metrics)
    assert chosen == {"hit@2": 2.0, "hit@4": 0.0, "hit@1": 0.0, "best": 2.0}
    assert search_gamma(distances, weights, [3, 3], [("ndcg", 10), ("Hit", 3)]) == {"ndcg@10": 2.0, "Hit@3": 1.0}


def test_grids_of_the_paper():
    assert POPULARITY_GAMMAS == tuple(range(100))
    assert len(COLLABORATIVE_GAMMAS) == 199 and COLLABORATIVE_GAMMAS[:3] == (0, 0.01, 0.02)
    assert COLLABORATIVE_GAMMAS[99:102] == (0.99, 1, 2) and COLLABORATIVE_GAMMAS[-1] == 99


def test_wrong_input_is_refused():
    for distances, weights in [
        (DISTANCES, WEIGHTS[:3]),
        (DISTANCES[0], WEIGHTS),
        (DISTANCES, -WEIGHTS),
        (DISTANCES, WEIGHTS * np.nan),
        (DISTANCES * np.nan, WEIGHTS),
        (-np.inf * np.ones((1, 4)), WEIGHTS),
    ]:
        with pytest.raises(ValueError, match="must"):
            reweight(distances, weights, 1)
    with pytest.raises(ValueError, match="finite distance"):
        gamma_ranks([[1.0, np.inf]], np.zeros(2), [1], [0])
    with pytest.raises(ValueError, match="one per query"):
        gamma_ranks(DISTANCES, WEIGHTS, [1], [0])
    with pytest.raises(ValueError, match="no metric 'auc'"):
        search_gamma(DISTANCES, WEIGHTS, [0, 0, 0], [("auc", 1)])
    with pytest.raises(ValueError, match="at least one query"):
        search_gamma(DISTANCES[:0], WEIGHTS, np.zeros(0, int), [("hit", 1)])
    with pytest.raises(ValueError, match="not negative"):
        popularity_weights([1, -1])
    with pytest.raises(ValueError, match="scores must"):
        collaborative_weights([[np.nan, 1.0]])


@pytest.mark.parametrize(
    ("counts", "rankable"),
    [([[1.0, 2.0]], None), ([1.0, 2.0], [True]), ([1.0, 2.0], [1, 0]), ([[1.0]], [[True]])],
)
def test_counts_and_items_of_another_shape_or_type_are_refused(counts, rankable):
    with pytest.raises(ValueError, match=r"counts must be \[items\] and rankable bool \[items\]"):
        popularity_weights(np.array(counts), None if rankable is None else np.array(rankable))


@pytest.mark.parametrize("scores", [[1.0, 2.0], [[[1.0]]]])
def test_scores_of_another_shape_are_refused(scores):
    with pytest.raises(ValueError, match=r"scores must be \[queries, items\]"):
        collaborative_weights(np.array(scores))
