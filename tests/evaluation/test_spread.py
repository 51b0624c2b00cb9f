"""The answers' spread against counting by hand, and each of its warnings where it is due and where not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.evaluation import answer_spread, spread_warnings


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.booleans())
def test_the_spread_is_counted(answers, as_text):
    counts = Counter(answer for answer in answers if answer)
    given = np.array(["" if answer == 0 else f"title {answer}" for answer in answers], dtype=object)
    found = answer_spread(given if as_text else np.array(answers))
    assert found["distinct_answers"] == pytest.approx(len(counts) / len(answers))
    assert found["top_answer"] == pytest.approx(max(counts.values(), default=0) / len(answers))


def test_nothing_is_said_of_rows_without_an_answer_of_their_own():
    assert answer_spread(np.empty(0, dtype=np.int64)) == {} and spread_warnings({}, 0, 10) == []


@pytest.mark.parametrize(
    ("n_same", "spoken"), [(0, []), (300, []), (301, ["one answer is given to 30% of 1000 rows, more than 30%"])]
)
def test_one_answer_for_too_many(n_same, spoken):
    answers = np.array([1] * n_same + list(range(2, 1002 - n_same)))
    assert spread_warnings(answer_spread(answers), len(answers), 5000) == spoken


@pytest.mark.parametrize(
    ("n_distinct", "n_answers", "spoken"),
    [(9, 5000, ["9 different answers to 1000 rows, fewer than 1 %"]), (10, 5000, []), (4, 4, [])],
)
def test_too_few_different_answers(n_distinct, n_answers, spoken):
    answers = np.arange(1000) % n_distinct + 1
    assert [line for line in spread_warnings(answer_spread(answers), 1000, n_answers) if "different" in line] == spoken
