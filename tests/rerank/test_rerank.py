"""Lists and the bandit: worked cases, brute force, and the joint ridge regression that its blocks must equal."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.rerank import (
    ModularDispersionBandit,
    greedy_list,
    list_value,
    mmr_list,
    rerank_scores,
    simulated_regret,
)

seeds = st.integers(0, 10_000)
NAN = float("nan")
RELEVANCE = np.array([1.0, 0.92, 0.2, 0.6])
GENRES = np.array([[1.0, 0], [1, 0], [0, 1], [1, 1]])
UNIT = GENRES / np.linalg.norm(GENRES, axis=1, keepdims=True)
COSINE = 1 - UNIT @ UNIT.T


def world(seed, n=7):
    """Relevances, and distances of points, which are a metric."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 3))
    return rng.random(n), np.linalg.norm(points[:, None] - points[None], axis=2)


@pytest.mark.parametrize(
    ("beta", "half", "order"),
    [(0, False, [0, 1, 3]), (0.5, False, [0, 1, 2]), (1.2, False, [0, 2, 1]), (0.5, True, [0, 2, 1])],
)
def test_greedy_lists_of_a_worked_example(beta, half, order):
    assert greedy_list(RELEVANCE, beta * COSINE, 3, half)[0].tolist() == order


def test_gains_of_a_worked_example_make_up_the_value():
    order, gains = greedy_list(RELEVANCE, 0.5 * COSINE, 3)
    assert gains.tolist() == pytest.approx([1, 0.92, 1.2])
    best = max(list_value(items, RELEVANCE, 0.5 * COSINE) for items in combinations(range(4), 3))
    assert list_value(order, RELEVANCE, 0.5 * COSINE) == pytest.approx(3.12) == pytest.approx(best)


@given(seeds, st.integers(1, 6))
@settings(max_examples=40)
def test_a_list_with_half_relevance_has_half_of_the_best_value(seed, length):
    relevance, distances = world(seed)
    best = max(list_value(items, relevance, distances) for items in combinations(range(7), length))
    for half in (True, False):
        order, gains = greedy_list(relevance, distances, length, half)
        value = list_value(order, relevance, distances)
        assert gains.sum() == pytest.approx(value)
        assert not half or value >= best / 2 - 1e-12
    assert len(greedy_list(relevance, distances, 99)[0]) == 7


@given(seeds, st.floats(0, 1))
@settings(max_examples=30)
def test_marginal_relevance_by_a_loop(seed, trade_off):
    rng = np.random.default_rng(seed)
    relevance, similarity = rng.integers(4, size=6) / 4, rng.integers(4, size=(6, 6)) / 4
    chosen: list[int] = []
    for _ in range(5):
        left = [item for item in range(6) if item not in chosen]
        scores = [
            trade_off * relevance[a] - (1 - trade_off) * max((similarity[b, a] for b in chosen), default=0)
            for a in left
        ]
        chosen.append(left[int(np.argmax(scores))])
    assert mmr_list(relevance, similarity, 5, trade_off).tolist() == chosen


@given(seeds)
def test_relevance_alone_leaves_the_base_order(seed):
    scores = np.random.default_rng(seed).integers(5, size=8) / 2
    base = np.argsort(-scores, kind="stable")
    assert mmr_list(scores, np.ones((8, 8)), 8, 1.0).tolist() == base.tolist()
    bandit = ModularDispersionBandit(1, 1, prior={"theta": [1.0], "beta": [0.0]})
    assert bandit.recommend(scores[:, None], np.ones((1, 8, 8)), 8)[0].tolist() == base.tolist()
    top = np.random.default_rng(seed).permutation(base[:3])
    again = rerank_scores(scores, top)
    assert np.argsort(-again, kind="stable")[:3].tolist() == top.tolist()
    np.testing.assert_array_equal(np.delete(again, top), np.delete(scores, top))
    assert again[top].tolist() == [np.sort(scores)[-3] + n for n in (3, 2, 1)]
    assert rerank_scores(scores, base[-2:])[base[-2:]].tolist() == [np.sort(scores)[-2] + n for n in (2, 1)]


@pytest.mark.parametrize(
    "base",
    [
        [-np.inf, 0.3, -np.inf, 2.0, -np.inf],
        [-np.inf] * 5,
        [1e17, 3e17, -np.inf, 2e17, 0.0],
        [-1e300, -2e300, -3e300, -4e300, -5e300],
        [np.inf, np.inf, np.inf, 1.0, 2.0],
    ],
)
def test_an_order_is_kept_where_a_step_of_one_would_be_lost(base):
    """Infinite or huge scores; the others stay below, and as they were."""
    order = np.argsort(-np.array(base), kind="stable")[:3][[1, 2, 0]]
    found = rerank_scores(np.array(base), order)
    rest = np.setdiff1d(np.arange(5), order)
    assert np.isfinite(found[order]).all() and (np.diff(found[order]) < 0).all()
    assert found[rest].tolist() == np.array(base)[rest].tolist() and found[rest].max() < found[order].min()


@given(seeds, st.floats(0.1, 5), st.booleans())
@settings(max_examples=40)
def test_blocks_are_the_joint_ridge_regression(seed, ridge, with_prior):
    rng = np.random.default_rng(seed)
    prior = {"theta": rng.normal(size=3), "beta": rng.normal(size=2)} if with_prior else None
    centre = np.concatenate([prior["theta"], prior["beta"]]) if prior else np.zeros(5)
    bandit = ModularDispersionBandit(3, 2, ridge, prior)
    np.testing.assert_allclose(np.concatenate(bandit.weights()), centre)
    x, z, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 2)), rng.normal(size=9)
    for start in range(0, 9, 2):  # many small updates
        bandit.update(x[start : start + 2], z[start : start + 2], y[start : start + 2])
    joint = np.hstack([x, z])
    gram = ridge * np.eye(5) + joint.T @ joint
    np.testing.assert_allclose(
        np.concatenate(bandit.weights()), centre + np.linalg.solve(gram, joint.T @ (y - joint @ centre)), atol=1e-10
    )
    queries = rng.normal(size=(4, 5))
    widths = np.sqrt(np.einsum("ij,ij->i", queries, np.linalg.solve(gram, queries.T).T))
    np.testing.assert_allclose(bandit.width(queries[:, :3], queries[:, 3:]), widths, atol=1e-10)


def test_a_bandit_answers_as_it_is_told():
    x, z, y = np.eye(2), np.ones((2, 1)), np.array([1.0, 0.0])
    of_arrays, of_tensors = (ModularDispersionBandit(2, 1) for _ in range(2))
    of_arrays.update(x, z, y)
    of_tensors.update(*map(torch.from_numpy, (x, z, y)))
    for expected, found in zip(of_arrays.weights(), of_tensors.weights(), strict=True):
        assert isinstance(expected, np.ndarray)
        torch.testing.assert_close(found, torch.from_numpy(expected))
    prior = {"theta": torch.tensor([1.0, 2.0]), "beta": torch.tensor([3.0])}
    assert [one.tolist() for one in ModularDispersionBandit(2, 1, prior=prior).weights()] == [[1, 2], [3]]


def test_the_bandit_of_a_worked_example():
    bandit = ModularDispersionBandit(1, 1)
    bandit.update([[1.0], [1], [0]], [[0.0], [1], [2]], [1.0, 0, 1])
    theta, beta = bandit.weights()
    assert [*theta, *beta] == pytest.approx([4 / 17, 5 / 17])
    assert bandit.width([[1.0]], [[1.0]])[0] ** 2 == pytest.approx(7 / 17)
    assert theta[0] + beta[0] + bandit.width([[1.0]], [[1.0]])[0] == pytest.approx(1.171101, abs=1e-6)


@given(seeds, st.floats(0, 2))
@settings(max_examples=20)
def test_a_recommended_list_step_by_step(seed, alpha):
    rng = np.random.default_rng(seed)
    bandit = ModularDispersionBandit(2, 2)
    bandit.update(rng.normal(size=(6, 2)), rng.random((6, 2)), rng.normal(size=6))
    x, distances = rng.normal(size=(6, 2)), rng.random((2, 6, 6))
    distances = distances + distances.transpose(0, 2, 1)
    order, scores = bandit.recommend(x, distances, 4, alpha)
    theta, beta = bandit.weights()
    for k, item in enumerate(order):
        z = distances[:, order[:k]].sum(axis=1).T.reshape(6, 2) if k else np.zeros((6, 2))
        values = x @ theta + z @ beta + alpha * bandit.width(x, z)
        values[order[:k]] = -np.inf
        assert item == values.argmax()
        assert scores[k] == pytest.approx(values[item])
    if not alpha:
        table = np.einsum("j,jab->ab", beta, distances)
        assert order.tolist() == greedy_list(x @ theta, table, 4)[0].tolist()


@pytest.mark.slow
def test_regret_grows_like_a_root_and_relevance_alone_stays_behind():
    """Lists have a value by relevance and dispersion; regret is against greedy lists of the true weights."""
    regrets = {name: np.zeros(1200) for name in ("both", "relevance")}
    for seed in range(2):
        for name, total in regrets.items():
            rng = np.random.default_rng(seed)
            theta = rng.normal(size=5)
            theta /= np.linalg.norm(theta)
            beta = np.array([0.3, 0.15]) * 2
            bandit = ModularDispersionBandit(5, 2)
            for t in range(len(total)):
                x = rng.normal(size=(20, 5))
                x /= np.linalg.norm(x, axis=1, keepdims=True)
                points = rng.normal(size=(2, 20, 3))
                points /= np.linalg.norm(points, axis=2, keepdims=True)
                distances = np.linalg.norm(points[:, :, None] - points[:, None], axis=3) / 2
                table = np.einsum("j,jab->ab", beta, distances)
                order, _ = bandit.recommend(x, distances if name == "both" else 0 * distances, 5, alpha=0.5)
                z = np.stack([distances[:, order[:k], order[k]].sum(axis=1) for k in range(5)])
                value = x[order] @ theta + z @ beta
                y = value + 0.5 * rng.normal(size=5)
                bandit.update(x[order], z if name == "both" else 0 * z, y)
                best, _ = greedy_list(x @ theta, table, 5)
                total[t] += list_value(best, x @ theta, table) - list_value(order, x @ theta, table)
    both, alone = (np.cumsum(regrets[name]) / 2 for name in ("both", "relevance"))
    assert both[-1] / both[299] < 2.4  # sqrt(4) is 2, linear growth 4
    assert alone[-1] > 4 * both[-1]


@pytest.mark.slow
def test_who_learns_dispersion_loses_least():
    """Regret by policies in one world: that of LMDH grows like a root, and ends below that of LinUCB and of chance."""
    regret = {
        policy: np.mean([simulated_regret(policy, 1600, seed) for seed in range(2)], axis=0)
        for policy in ("lmdh", "linucb", "random")
    }
    assert regret["lmdh"][-1] / regret["lmdh"][399] < 2.2  # sqrt(4) is 2, linear growth 4
    assert 4 * regret["lmdh"][-1] < regret["linucb"][-1] < regret["random"][-1]
    assert regret["random"][-1] / regret["random"][399] == pytest.approx(4, rel=0.1)


def test_a_policy_that_there_is_not():
    with pytest.raises(ValueError, match="'best'"):
        simulated_regret("best", 1)


def test_items_without_a_finite_score_follow_the_others_each_once():
    relevance, distances = [-np.inf, 1.0, -np.inf], np.zeros((3, 3))
    assert greedy_list(relevance, distances, 3)[0].tolist() == [1, 0, 2]
    assert mmr_list(relevance, distances, 3, 0.5).tolist() == [1, 0, 2]
    bandit = ModularDispersionBandit(1, 1, prior={"theta": [1.0], "beta": [0.0]})
    order, scores = bandit.recommend([[-np.inf], [1.0], [-np.inf]], distances[None], 3)
    assert order.tolist() == [1, 0, 2]
    assert scores.tolist() == [-np.inf if one else 1.0 for one in range(3)]


def test_lists_of_what_is_no_item_are_refused():
    with pytest.raises(ValueError, match="item -1 is out of range: there are 4"):
        list_value([0, -1], RELEVANCE, COSINE)
    with pytest.raises(ValueError, match="item 4 is out of range: there are 4"):
        rerank_scores(RELEVANCE, [4, 0])
    with pytest.raises(ValueError, match="the order names an item twice"):
        rerank_scores(RELEVANCE, [1, 1])


def test_feedback_of_another_shape_teaches_nothing():
    bandit, twin = ModularDispersionBandit(2, 1), ModularDispersionBandit(2, 1)
    with pytest.raises(ValueError, match=r"do not match: \(3, 2\), \(3, 1\), \(3, 1\)"):
        bandit.update(np.ones((3, 2)), np.ones((3, 1)), np.ones((3, 1)))
    for one in (bandit, twin):
        one.update([[1.0, 2.0]], [[1.0]], [1.0])
    np.testing.assert_array_equal(np.concatenate(bandit.weights()), np.concatenate(twin.weights()))
    with pytest.raises(ValueError, match=r"x \[n, 2\] and distances \[1, n, n\] do not match"):
        bandit.recommend([[1.0]], np.zeros((1, 1, 1)), 1)
    with pytest.raises(ValueError, match="the prior has theta and beta, not gamma"):
        ModularDispersionBandit(1, 1, prior={"gamma": [1.0]})


@pytest.mark.parametrize("trade_off", [0.0, 0.5, 1.0])
def test_what_is_not_ranked_stays_last_whatever_the_trade_off(trade_off):
    order = mmr_list([0.1, -np.inf, 0.3, -np.inf], np.eye(4), 4, trade_off)
    assert set(order[:2]) == {0, 2} and order[2:].tolist() == [1, 3]


def test_nan_is_refused_and_nothing_is_learnt_of_it():
    bandit = ModularDispersionBandit(2, 1)
    bandit.update([[1.0, 2.0]], [[1.0]], [1.0])
    before = bandit.weights()
    for call in (
        lambda: mmr_list([0.9, 0.1, NAN], np.eye(3), 2, 1.0),
        lambda: greedy_list([0.1, 0.2, 0.3], np.full((3, 3), NAN), 2),
        lambda: list_value([0, 1], [0.1, NAN, 0.3], np.zeros((3, 3))),
        lambda: rerank_scores([3, NAN, 1], [2, 0]),
        lambda: bandit.update([[NAN, 1.0]], [[0.0]], [1.0]),
    ):
        with pytest.raises(ValueError, match="NaN"):
            call()
    for old, new in zip(before, bandit.weights(), strict=True):
        np.testing.assert_array_equal(old, new)
