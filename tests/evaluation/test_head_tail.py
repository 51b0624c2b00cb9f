"""Head and tail: which items are which, and metrics of each part."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.evaluation.head_tail import head_items, head_tail_metrics


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_no_item_of_the_tail_is_more_popular(counts, share):
    head = head_items(np.array([99, *counts]), share)
    own, others = np.array(counts)[head[1:]], np.array(counts)[~head[1:]]
    assert not head[0] and len(own) == int(np.ceil(share * len(counts) - 1e-9))
    assert not len(others) or not len(own) or own.min() >= others.max()


@given(st.lists(st.tuples(st.integers(-1, 12), st.integers(1, 5)), min_size=1, max_size=30))
def test_the_parts_make_up_the_whole(rows):
    ranks, targets = (np.array(column) for column in zip(*rows, strict=True))
    head = np.array([False, True, True, False, False, False])
    found = head_tail_metrics(ranks, targets, head, [1, 10])
    for k in (1, 10):
        hits = (ranks >= 0) & (ranks < k)
        gains = np.where(hits, 1 / np.log2(np.maximum(ranks, 0) + 2), 0.0)
        for part, own in {"head": head[targets], "tail": ~head[targets]}.items():
            if own.any():
                assert np.isclose(found[f"hit_{part}@{k}"], hits[own].mean())
                assert np.isclose(found[f"ndcg_{part}@{k}"], gains[own].mean())
            else:
                assert f"hit_{part}@{k}" not in found


def test_a_share_that_floats_above_a_whole_number_is_not_rounded_up():
    assert 0.07 * 100 > 7
    assert head_items(np.arange(101), 0.07).sum() == 7
