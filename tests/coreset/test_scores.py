"""Scaling, strata, allocation and the draw: numbers worked out by hand, and what holds for any scores."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recbole_llm.coreset import (
    allocate_budget,
    combine_scores,
    resolve_budget,
    scale_scores,
    score_strata,
    stratified_sample,
)
from recbole_llm.coreset.checks import checked_size, share_of
from tests.refusals import refused

INFLUENCE, EFFORT = [-2.0, 0, 1, 4, -1], [10.0, 2, 6, 4, 2]
SCORES = [0.05, 0.10, 0.10, 0.35, 0.50, 0.52, 0.75, 0.90, 1.0, 0.2]
finite = st.floats(-1e6, 1e6, width=64)


def plain_allocation(sizes, budget):
    """The procedure in words: sort again in every turn, discard what is empty."""
    groups = [[size, place] for place, size in enumerate(sizes) if size]
    counts = [0] * len(sizes)
    while groups:
        groups.sort()
        size, place = groups.pop(0)
        counts[place] = min(size, budget // (len(groups) + 1))
        budget -= counts[place]
    return counts


@pytest.mark.parametrize(
    "weight, expected",
    [(0.3, [0.3, 1 / 3, 0.65, 1.075, 1 / 6]), (1, [1, 1 / 3, 1, 1.25, 1 / 6]), (0, [0, 1 / 3, 0.5, 1, 1 / 6])],
)
def test_combined_numbers(weight, expected):
    np.testing.assert_allclose(combine_scores(INFLUENCE, EFFORT, weight), expected, atol=1e-12)
    tensor = combine_scores(torch.tensor(INFLUENCE), torch.tensor(EFFORT), weight)
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-12)


def test_scalings():
    np.testing.assert_allclose(scale_scores([3.0, 1, 1, 1000]), [2 / 999, 0, 0, 1])
    np.testing.assert_allclose(scale_scores([3.0, 1, 1, 1000], "rank"), [1.5 / 2.5, 0, 0, 1])
    clipped = scale_scores(np.r_[np.arange(1000.0), 1e9], "clip")
    assert clipped[-1] == 1 and clipped[500] == pytest.approx(0.5, abs=0.01)
    for scaling in ("minmax", "rank", "clip"):
        for constant in ([7.0], [7.0, 7.0], []):
            assert scale_scores(np.array(constant), scaling).tolist() == [0.0] * len(constant)
    assert scale_scores([-1e308, 1e308]).tolist() == [0, 0]  # a range that is no number
    assert scale_scores([0, 5e-324]).tolist() == [0, 1]


@given(hnp.arrays(np.float64, 12, elements=finite, unique=True), st.floats(0.5, 4), st.floats(-9, 9), st.floats(0.1, 9))
def test_combined_scores_ignore_units(influence, factor, shift, effort_factor):
    effort = np.arange(12) ** 1.5
    expected = combine_scores(influence, effort, 0.7)
    np.testing.assert_allclose(
        combine_scores(factor * influence + shift, effort_factor * effort, 0.7), expected, atol=1e-6
    )


def test_strata_numbers():
    assert score_strata(SCORES, 5).tolist() == [0, 0, 0, 1, 2, 2, 3, 4, 4, 0]
    assert score_strata(SCORES, 5, 0.2).tolist() == [0, 0, 0, 2, 3, 3, 4, -1, -1, 1]
    assert score_strata([3.0, 3, 3], 4).tolist() == [0, 0, 0]
    assert score_strata(np.arange(11.0), 5).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # (low, high], minimum in 0
    trap = np.array([0.009185075759887695, 1.9923714399337769], dtype=np.float32)
    assert score_strata(trap, 5).tolist() == [0, 4] and score_strata(torch.tensor(trap), 5).tolist() == [0, 4]
    assert score_strata([1.0, 2.0], 9).tolist() == [0, 8]


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32)), st.integers(1, 60))
def test_every_row_is_in_the_stratum_whose_interval_holds_it(scores, n_groups):
    strata = score_strata(scores, n_groups)
    values = scores.astype(np.float64)
    width = (values.max() - values.min()) / n_groups
    slack = 1e-9 * max(width, 1)
    assert ((strata >= 0) & (strata < n_groups)).all()
    assert (values >= values.min() + strata * width - slack).all()
    assert (values <= values.min() + (strata + 1) * width + slack).all()
    assert strata[values.argmin()] == 0 and (width == 0 or strata[values.argmax()] == n_groups - 1)


@pytest.mark.parametrize(
    "sizes, budget, counts",
    [
        ([0, 1, 3, 10, 50], 20, [0, 1, 3, 8, 8]),
        ([5, 5, 5], 7, [2, 2, 3]),
        ([2, 2, 2, 2], 3, [0, 1, 1, 1]),
        ([1, 100], 50, [1, 49]),
        ([4, 4], 20, [4, 4]),
        ([7], 3, [3]),
        ([3, 0, 0, 9, 1], 5, [2, 0, 0, 2, 1]),
        ([3, 1, 4], 0, [0, 0, 0]),
        ([], 4, []),
    ],
)
def test_allocation_numbers(sizes, budget, counts):
    for given_sizes in (sizes, np.array(sizes, dtype=int), torch.tensor(sizes, dtype=torch.int64)):
        assert allocate_budget(given_sizes, budget) == counts


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 200))
def test_allocation_properties(sizes, budget):
    counts = allocate_budget(sizes, budget)
    assert counts == plain_allocation(sizes, budget)
    assert sum(counts) == min(budget, sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    by_size = [count for _, _, count in sorted(zip(sizes, range(len(sizes)), counts, strict=True))]
    assert by_size == sorted(by_size)


@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=finite),
    st.integers(0, 70),
    st.integers(1, 80),
    st.sampled_from([0.0, 0.1, 0.5, 0.99]),
)
def test_a_sample_has_the_counts_of_its_strata(scores, budget, n_groups, hard_prune_ratio):
    strata = score_strata(scores, n_groups, hard_prune_ratio)
    rows = stratified_sample(scores, budget, n_groups, hard_prune_ratio, seed=3)
    assert rows.tolist() == sorted(set(rows.tolist()))
    sizes = np.bincount(strata[strata >= 0], minlength=n_groups)
    assert np.bincount(strata[rows], minlength=n_groups).tolist() == allocate_budget(sizes, budget)
    again = stratified_sample(scores, budget, n_groups, hard_prune_ratio, seed=3)
    np.testing.assert_array_equal(again, rows)


def test_pruned_rows_are_never_drawn():
    assert stratified_sample(SCORES, 8, 5, 0.2).tolist() == [0, 1, 2, 3, 4, 5, 6, 9]


def test_permuting_rows_permutes_the_sample_and_global_random_state_has_no_part():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=300)
    rows = stratified_sample(scores, 50, 20, 0.1, seed=7)
    np.random.seed(1)
    torch.manual_seed(1)
    order = rng.permutation(300)
    moved = stratified_sample(scores[order], 50, 20, 0.1, seed=7)
    np.testing.assert_array_equal(np.sort(order[moved]), rows)
    assert stratified_sample(scores, 50, 20, 0.1, seed=8).tolist() != rows.tolist()
    assert isinstance(stratified_sample(torch.tensor(scores), 50, 20, 0.1, seed=7), torch.Tensor)


def test_every_row_of_a_stratum_is_drawn_equally_often():
    scores = np.r_[np.zeros(6), np.full(14, 1.0)]
    drawn = np.bincount(
        np.concatenate([stratified_sample(scores, 8, 2, seed=seed) for seed in range(600)]), minlength=20
    )
    assert drawn[:6].sum() == drawn[6:].sum() == 4 * 600
    assert abs(drawn[:6] / 600 - 4 / 6).max() < 0.08 and abs(drawn[6:] / 600 - 4 / 14).max() < 0.08


def test_more_wanted_than_there_are_gives_all_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert stratified_sample([3.0, 1, 2], 5, 4).tolist() == [0, 1, 2]
    assert "exceeds" in caplog.text
    caplog.clear()
    assert stratified_sample(SCORES, 9, 5, 0.2).tolist() == [0, 1, 2, 3, 4, 5, 6, 9]
    assert "exceeds the 8 rows" in caplog.text
    caplog.clear()
    assert stratified_sample([3.0, 1, 2], 3, 4).tolist() == [0, 1, 2] and not caplog.text
    assert stratified_sample(np.zeros(0), 0, 4).tolist() == []


def test_budget_from_a_share_is_the_floor_of_the_decimal_as_written():
    assert resolve_budget(100, ratio=0.29) == 29  # 0.29 * 100 is 28.999999999999996
    assert resolve_budget(49156, ratio=0.02) == 983 and resolve_budget(10, ratio=1.0) == 10
    assert resolve_budget(10, budget=20) == 20
    assert resolve_budget(7, ratio=np.int64(1)) == 7
    for arguments in ({}, {"budget": 3, "ratio": 0.1}):
        with refused("coreset", "conflict", "give either a budget .* or a ratio"):
            resolve_budget(10, **arguments)
    for arguments in (
        {"budget": -1},
        {"budget": 2.0},
        {"budget": True},
        {"ratio": 1.5},
        {"ratio": "0.5"},
        {"ratio": float("nan")},
    ):
        with refused("", "value", "coreset (budget|ratio): .* is not allowed"):
            resolve_budget(10, **arguments)
    with refused("", "value", "coreset rows: -10 is not allowed"):
        resolve_budget(-10, ratio=0.1)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, float])
@given(st.integers(0, 99), st.integers(0, 2000))
@example(29, 100)
def test_a_share_is_the_decimal_that_it_shows_in_any_number_of_bits(kind, hundredths, n_rows):
    share, expected = kind(hundredths / 100), hundredths * n_rows // 100
    assert resolve_budget(n_rows, ratio=share) == share_of(share, n_rows) == expected
    if expected:
        assert checked_size("coreset_size", share, n_rows) == expected
    if n_rows:
        assert (score_strata(np.arange(float(n_rows)), 3, share) < 0).sum() == expected


@pytest.mark.parametrize(
    ("call", "words", "key", "kind"),
    [
        (
            lambda: stratified_sample([1.0, np.nan, 2, np.inf], 1, 2),
            "2 of 4 rows hold NaN or infinity .first ids 1, 3",
            "scores",
            "numeric",
        ),
        (lambda: stratified_sample([1.0, 2], -1, 2), "budget: -1", "", "value"),
        (lambda: stratified_sample([1.0, 2], 1.5, 2), "budget: 1.5", "", "value"),
        (lambda: stratified_sample([1.0, 2], 1, 0), "groups: 0", "", "value"),
        (lambda: stratified_sample([1.0, 2], 1, 2, 1.0), "hard_prune_ratio: 1.0", "hard_prune_ratio", "value"),
        (lambda: stratified_sample([1.0, 2], 1, 2, -0.1), "hard_prune_ratio: -0.1", "hard_prune_ratio", "value"),
        (lambda: stratified_sample([[1.0, 2]], 1, 2), "one number per row", "scores", "value"),
        (lambda: combine_scores([1.0, 2], [1.0], 1), "2 rows and effort 1", "", "conflict"),
        (lambda: combine_scores([1.0, np.nan], [1.0, 2], 1), "influence: 1 of 2 rows", "influence", "numeric"),
        (lambda: combine_scores([1.0, 3], [1.0, 2], -1), "weight: -1", "", "value"),
        (lambda: scale_scores([1.0], "log"), "scaling 'log' is unknown", "", "unknown"),
        (lambda: allocate_budget([1, -2], 3), "group size: -2", "", "value"),
    ],
)
def test_bad_input_is_one_line(call, words, key, kind):
    with refused(key, kind, words) as caught:
        call()
    assert "\n" not in str(caught.value)
