"""Trunks: how much history rows see in them, and that steps and passes hold every row once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.prompt.trunk import TREE_TOKENS, Trunks, segments, trunk_passes, trunk_steps
from tests.refusals import refused

befores = st.lists(st.integers(1, 60), min_size=1, max_size=40, unique=True).map(sorted)
limits = st.integers(1, 12).flatmap(lambda longest: st.tuples(st.just(longest), st.integers(1, longest)))


@given(st.integers(1, 60), limits)
def test_consecutive_rows_are_in_segments_of_full_length(n_rows, limit):
    """Every row of a user: segment k begins k strides in, but for the last, which begins as early as it can."""
    longest, overlap = limit
    before = np.arange(1, n_rows + 1)
    stride = longest - overlap + 1
    starts = stride * np.maximum(np.ceil((before - longest) / stride), 0)
    last = starts == starts[-1]
    starts[last] = max(0, n_rows - longest)
    assert segments(before.tolist(), longest, overlap) == starts.tolist()


@given(befores, limits)
def test_every_row_sees_between_the_overlap_and_the_longest_history(before, limit):
    longest, overlap = limit
    seen = np.array(before) - np.array(segments(before, longest, overlap))
    least = np.minimum(before, overlap)
    assert (seen <= np.minimum(before, longest)).all() and (seen >= least).all()
    short = np.array(before) <= longest
    assert (seen[short] == np.array(before)[short]).all()


@given(befores, limits, st.lists(st.integers(1, 9), min_size=60, max_size=60), st.integers(1, 60))
def test_what_does_not_fit_is_in_shorter_segments(before, limit, tokens, budget):
    """Titles of different lengths: where the least that a row must see fits, so does what it sees."""
    longest, overlap = limit
    ends = np.cumsum([0, *tokens])

    def fits(row: int, items: int) -> bool:
        return bool(ends[before[row]] - ends[before[row] - items] <= budget)

    starts = segments(before, longest, overlap, fits)
    for row, start in enumerate(starts):
        assert min(before[row], overlap) <= before[row] - start <= min(before[row], longest)
        if fits(row, min(before[row], overlap)):
            assert fits(row, before[row] - start)
        if before[row] <= longest and fits(row, before[row]):
            assert start == 0
    if all(ends[n] - ends[max(0, n - longest)] <= budget for n in range(1, 61)):
        assert starts == segments(before, longest, overlap)


def test_an_overlap_of_everything_cuts_nothing():
    before = list(range(1, 30))
    assert segments(before, 10, 10) == [max(0, n - 10) for n in before]


def trunks_of(lengths: Sequence[int], seed: int = 0) -> Trunks:
    rows = np.random.default_rng(seed).permutation(sum(lengths))
    return Trunks(np.split(rows, np.cumsum(lengths)[:-1]))


def test_rows_of_a_trunk_are_those_of_one_user_and_start_of_which_each_continues_the_one_before():
    users = [3, 3, 1, 3, 1, 3, 3]
    starts = [0, 0, 0, 2, 0, 2, 0]
    histories = [[7, 8], [7], [7], [9, 5], [7, 8], [9], [8, 7, 6]]
    found = Trunks.of(users, starts, histories)
    assert [rows.tolist() for rows in found.rows] == [[2, 4], [1, 0], [6], [5, 3]]  # row 6 is of another sequence
    assert found.of_row.tolist() == [1, 1, 0, 3, 0, 3, 2]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 12), st.integers(0, 99))
def test_steps_hold_every_row_once_and_trunks_in_one_piece(lengths, batch_size, seed):
    trunks, n_rows = trunks_of(lengths), sum(lengths)
    steps = trunk_steps(trunks, batch_size, np.random.default_rng(seed))
    assert len(steps) == math.ceil(n_rows / batch_size) and {len(step) for step in steps[:-1]} <= {batch_size}
    rows = np.concatenate(steps)
    assert sorted(rows.tolist()) == list(range(n_rows))
    changes = np.count_nonzero(np.diff(trunks.of_row[rows]))
    assert changes == len(trunks) - 1
    again = trunk_steps(trunks, batch_size, np.random.default_rng(seed))
    assert all(np.array_equal(one, other) for one, other in zip(steps, again, strict=True))


def test_epochs_differ_in_their_order():
    trunks, generator = trunks_of([3] * 20), np.random.default_rng(0)
    one, other = (np.concatenate(trunk_steps(trunks, 8, generator)).tolist() for _ in range(2))
    assert one != other


def test_a_batch_size_of_none_is_refused():
    with refused("train_batch_size", "value", "^train_batch_size: 0 is not a positive number of rows"):
        trunk_steps(trunks_of([2]), 0, np.random.default_rng(0))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.integers(1, 400),
    st.integers(0, 30),
    st.lists(st.integers(1, 60), min_size=180, max_size=180),
)
def test_passes_hold_every_row_once_and_keep_to_the_budget(lengths, budget, head, tokens):
    """A tree takes the head, and of each row so many tokens."""
    trunks, n_rows = trunks_of(lengths), sum(lengths)

    def size(tree: Sequence[int]) -> int:
        return head + sum(tokens[row] for row in tree)

    passes = trunk_passes(range(n_rows), trunks.of_row, size, head, budget)
    assert sorted(row for one in passes for tree in one.trees for row in tree) == list(range(n_rows))
    for one in passes:
        width = max(map(size, one.trees))
        assert len(one.trees) * width <= budget or len(one.trees) == len(one.trees[0]) == 1
        assert one.n_tokens == sum(map(size, one.trees))
        for tree in one.trees:
            parts = {int(trunks.of_row[row]) for row in tree}
            assert len(parts) == 1 or size(tree) <= TREE_TOKENS


def test_a_trunk_over_the_budget_is_halved_and_small_ones_share_a_head():
    trunks = Trunks([np.arange(8), np.array([8, 9]), np.array([10])])
    passes = trunk_passes(range(11), trunks.of_row, lambda tree: 10 + 10 * len(tree), 10, 60)
    assert [one.trees for one in passes] == [[[0, 1, 2, 3, 10]], [[4, 5, 6, 7]], [[8, 9]]]
    assert [one.n_tokens for one in passes] == [60, 50, 30]
