"""A category hit is what its definition says, row by row; it grows with k and counts every hit of the target itself."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.evaluation.categories import category_hit_ratio, category_ranks, drop_common
from recbole_llm.report import ResultTable, RunResult

GENRES = ([], ["drama"], ["drama", "war"], ["comedy"], [], ["war", "comedy", "war"])


@st.composite
def rankings(draw):
    """Recommended items with pads at any place, targets, categories and all cut-offs."""
    n_items, width = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    n_categories = draw(st.sampled_from([1, 3, 20]))  # more than 8 take a second byte
    names = st.sets(st.integers(0, n_categories - 1), max_size=4)
    categories = [set(), *draw(st.lists(names, min_size=n_items - 1, max_size=n_items - 1))]
    rows = draw(st.integers(1, 8))
    row = st.lists(st.integers(0, n_items - 1), min_size=width, max_size=width)
    top = draw(st.lists(row, min_size=rows, max_size=rows))
    targets = draw(st.lists(st.integers(1, n_items - 1), min_size=rows, max_size=rows))
    return top, targets, categories, range(1, width + 1)


def by_definition(top, targets, categories, k):
    """Whether each row with a category is a hit, one item after the other."""
    return [
        any(item != 0 and set(categories[item]) & set(categories[target]) for item in items[:k])
        for items, target in zip(top, targets, strict=True)
        if categories[target]
    ]


@given(rankings())
def test_equals_its_definition(ranking):
    top, targets, categories, cutoffs = ranking
    hits = {k: by_definition(top, targets, categories, k) for k in cutoffs}
    expected = {f"category_hit@{k}": sum(hits[k]) / len(hits[k]) for k in cutoffs} if hits[1] else {}
    found = category_hit_ratio(np.array(top), np.array(targets), categories, cutoffs)
    assert found == pytest.approx(expected, abs=1e-15) and list(found) == list(expected)


@given(rankings())
def test_grows_with_k_and_is_at_least_the_hit_ratio_of_the_rows_with_a_category(ranking):
    top, targets, categories, cutoffs = ranking
    ratios = list(category_hit_ratio(top, targets, categories, cutoffs).values())
    assert ratios == sorted(ratios)
    stated = [row for row, target in enumerate(targets) if categories[target]]
    for k, ratio in zip(cutoffs, ratios, strict=bool(stated)):
        assert ratio >= np.mean([targets[row] in top[row][:k] for row in stated])


@given(rankings(), st.randoms(use_true_random=False))
def test_names_and_their_order_do_not_matter(ranking, random):
    top, targets, categories, cutoffs = ranking
    renamed = [[f"genre {name}" for name in random.sample(sorted(own), len(own))] for own in categories]
    assert category_hit_ratio(top, targets, renamed, cutoffs) == category_hit_ratio(top, targets, categories, cutoffs)


def test_places_of_an_example():
    top = [[3, 2, 1], [4, 4, 3], [1, 2, 3], [0, 0, 5]]
    assert category_ranks(top, [1, 5, 4, 3], GENRES).tolist() == [1, 2, -1, 2]
    assert category_hit_ratio(top, [1, 5, 4, 3], GENRES, [3, 1]) == {"category_hit@3": 1.0, "category_hit@1": 0.0}


def test_padding_is_never_a_hit_even_if_it_had_a_category():
    padded = [["drama"], *GENRES[1:]]
    assert category_ranks([[0, 0, 2]], [1], padded).tolist() == [2]
    assert category_hit_ratio([[0, 0]], [1], padded, [2]) == {"category_hit@2": 0.0}


def test_targets_without_a_category_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.INFO):
        found = category_hit_ratio([[1], [1], [1], [3]], [4, 2, 4, 2], GENRES, [1])
    assert found == {"category_hit@1": 0.5}
    assert "2 of 4 targets have no category" in caplog.text
    assert category_hit_ratio([[1], [2]], [4, 4], GENRES, [1]) == {}
    assert category_hit_ratio(np.empty((0, 5), int), np.empty(0, int), GENRES, [5]) == {}


def test_rows_and_cut_offs_must_fit():
    for top, targets in (([[1, 2]], [1, 2]), ([1, 2], [1, 2])):
        with pytest.raises(ValueError, match="do not fit"):
            category_hit_ratio(top, targets, GENRES, [1])
    for k in (0, 3):
        with pytest.raises(ValueError, match=r"cut-offs must lie in 1\.\.2"):
            category_hit_ratio([[1, 2]], [1], GENRES, [1, k])


def test_what_nearly_every_item_states_is_no_category(caplog):
    games = [[], *[["games", "pc"]] * 10, *[["games"]] * 9, ["books"], []]  # games: 19 of the 20 that state any
    with caplog.at_level(logging.INFO):
        assert drop_common(games) == [[], *[["pc"]] * 10, *[[]] * 9, ["books"], []]
    assert "category games is left out: 19 of 20 items have it" in caplog.text
    assert drop_common(games, share=0.95) == games  # exactly the share is not more
    assert drop_common(games, share=0.4)[1] == []
    assert drop_common([[], []]) == [[], []]


def test_it_stands_beside_the_hit_ratio_in_the_table():
    metrics = {"category_hit@5": 0.5, "category_hit@1": 0.25, "itemcoverage@5": 1.0, "hit@5": 0.125}
    table = ResultTable((RunResult("Pop", "d", test=metrics),))
    assert table.metrics == ["hit@5", "category_hit@1", "category_hit@5", "itemcoverage@5"]
    assert "CategoryHit@1" in table.text() and table.csv().splitlines()[0].count("category_hit@5") == 2
    assert ResultTable.from_json(table.json()).results[0].test == metrics
