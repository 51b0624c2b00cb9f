"""The values of the axis ``rerank``: what they keep, what they learn, and the distances that they go by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.rerank import (
    ItemSpace,
    LMDHReranker,
    MMRReranker,
    RerankExample,
    RerankSettings,
    category_vectors,
    mmr_list,
    reordered,
    standardised,
)

seeds = st.integers(0, 10_000)


def space(seed, n=12, distance="cosine"):
    vectors = np.random.default_rng(seed).normal(size=(n, 4))
    vectors[0] = 0
    return ItemSpace((vectors > 0).astype(float) if distance == "jaccard" else vectors, distance)


def falling(seed, n=8):
    return -np.sort(-np.random.default_rng(seed).normal(size=n))


@given(seeds, st.sampled_from(["cosine", "euclid", "jaccard"]))
@settings(max_examples=30)
def test_distances_are_those_of_two_items_at_a_time(seed, distance):
    of = space(seed, distance=distance)
    table = of.distances(np.arange(1, 12))
    for i, a in enumerate(of.vectors[1:]):
        for j, b in enumerate(of.vectors[1:]):
            unit = [v / (np.linalg.norm(v) or 1) for v in (a, b)]
            if distance == "jaccard":
                wanted = 1 - ((a * b).sum() / either if (either := np.maximum(a, b).sum()) else 0.0)
            elif distance == "cosine":
                wanted = 1 - unit[0] @ unit[1]
            else:
                wanted = np.linalg.norm(unit[0] - unit[1]) / 2
            assert table[i, j] == pytest.approx(0.0 if i == j else wanted, abs=1e-7)
    assert (table == table.T).all()


def test_principal_places_keep_distances_of_few_axes():
    vectors = np.zeros((20, 6))
    vectors[1:, :3] = np.random.default_rng(0).normal(size=(19, 3))
    places, unit = (
        ItemSpace(vectors).components(8),
        vectors / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)[:, None],
    )
    assert places.shape == (20, 3) and (places[0] == 0).all()
    ratio = [np.linalg.norm(places[i] - places[j]) / np.linalg.norm(unit[i] - unit[j]) for i, j in ((1, 2), (3, 9))]
    assert ratio[0] == pytest.approx(ratio[1])


@given(seeds, st.integers(1, 10), st.floats(0, 1))
@settings(max_examples=40)
def test_a_new_order_holds_the_same_items_and_relevance_alone_is_the_old_one(seed, length, share):
    items, scores = np.arange(2, 10), falling(seed)
    for kind in (MMRReranker, LMDHReranker):
        ranker = kind(RerankSettings(rerank="mmr"), space(seed))
        if kind is LMDHReranker:
            ranker.restore({"theta": [0.3, 1.0, *[0.0] * (len(ranker.theta) - 2)], "beta": 0.4})
        order = reordered(ranker, items, scores, length, share)
        assert sorted(order) == list(range(8)) and (np.diff(order[length:]) > 0).all()
        assert reordered(ranker, items, scores, length, 1.0).tolist() == list(range(8))


def test_mmr_scales_scores_to_the_range_of_similarities():
    of, items, scores = space(3), np.arange(1, 7), falling(3, 6)
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    found = MMRReranker(RerankSettings(), of).order(items, 7 * scores + 3, 6, 0.4)
    assert found.tolist() == mmr_list(scaled, 1 - of.distances(items), 6, 0.4).tolist()


@pytest.mark.parametrize("wanted", [1.0, -1.0, 0.0])
def test_the_bandit_learns_whether_users_want_what_is_far_from_their_last_items(wanted):
    """Feedback is made of the score and of the dispersion by known weights; both are found."""
    rng, of = np.random.default_rng(5), space(5, n=40)
    ranker, examples = LMDHReranker(RerankSettings(rerank_ridge=1e-3), of), []
    for _ in range(600):
        items, window = rng.choice(np.arange(1, 40), 5, replace=False), rng.integers(1, 40, 4)
        scores = rng.normal(size=5)
        near = of.distances(np.concatenate([items, window]))[:5, 5:].sum(axis=1)
        chosen = int(np.argmax(scores + 2 * wanted * near + rng.gumbel(size=5)))
        swapped = np.r_[chosen, np.delete(np.arange(5), chosen)]
        examples.append(RerankExample(items[swapped], scores[swapped], window))
    ranker.learn(examples)
    assert ranker.theta[1] > 0.02
    assert abs(ranker.beta) < 0.02 if wanted == 0 else np.sign(ranker.beta) == wanted and abs(ranker.beta) > 0.05


def test_a_negative_weight_of_dispersion_can_be_taken_for_none():
    of, items, scores = space(1), np.arange(1, 9), falling(1)
    clipped = LMDHReranker(RerankSettings(clip_beta=True), of)
    clipped.restore({"theta": [0.0, 1.0, *[0.0] * (len(clipped.theta) - 2)], "beta": -5.0})
    assert clipped.order(items, scores, 8, 0.5).tolist() == list(range(8))
    free = LMDHReranker(RerankSettings(), of)
    free.restore(clipped.facts())
    assert free.order(items, scores, 8, 0.5).tolist() != list(range(8))


def test_what_is_learnt_survives_as_plain_data():
    one, other = (LMDHReranker(RerankSettings(), space(2)) for _ in range(2))
    rng = np.random.default_rng(0)
    one.learn([RerankExample(rng.integers(1, 12, 3), rng.normal(size=3), rng.integers(1, 12, 2)) for _ in range(9)])
    other.restore(one.facts())
    items, scores = np.arange(1, 9), falling(4)
    assert one.order(items, scores, 8, 0.3).tolist() == other.order(items, scores, 8, 0.3).tolist()


def test_scores_of_unranked_items_and_of_equal_ones_are_finite():
    assert standardised(np.array([-np.inf, 1.0]), np.array([1.0, 1.0])).tolist() == [-5.0, 0.0]
    assert standardised(np.array([1.0]), np.zeros(0)).tolist() == [1.0]


def test_categories_of_items_without_any_are_a_row_of_zeros():
    assert category_vectors([[], ["b", "a"], []]).tolist() == [[0, 0], [1, 1], [0, 0]]
