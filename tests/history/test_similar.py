"""The items of a history that are most similar to one item, against a sort of plain cosines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.history import similar_positions

N_ITEMS = 7
whole_numbers = st.lists(st.integers(-3, 3), min_size=3, max_size=3)
tables = st.lists(whole_numbers, min_size=N_ITEMS, max_size=N_ITEMS)
histories = st.lists(st.integers(0, N_ITEMS - 1), max_size=12)


def cosine(one: list[int], other: list[int]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


@given(histories, st.integers(0, N_ITEMS - 1), tables, st.integers(0, 13))
def test_the_most_similar_in_the_order_of_time_and_of_equal_ones_the_newer(history, target, table, length):
    cosines = [round(cosine(table[item], table[target]), 9) for item in history]
    ranked = sorted(range(len(history)), key=lambda index: (cosines[index], index), reverse=True)
    assert similar_positions(history, target, table, length).tolist() == sorted(ranked[:length])


@given(histories, st.integers(0, N_ITEMS - 1), tables, st.integers(0, 13), st.floats(0.1, 50))
def test_the_length_of_vectors_has_no_part_in_it(history, target, table, length, scale):
    scaled = np.array(table) * scale
    expected = similar_positions(history, target, table, length)
    assert similar_positions(history, target, scaled, length).tolist() == expected.tolist()


def test_a_tensor_gives_a_tensor():
    found = similar_positions(torch.tensor([1, 2]), 2, torch.eye(3), 1)
    assert isinstance(found, torch.Tensor) and found.tolist() == [1]


def test_a_length_below_nothing_is_refused():
    with pytest.raises(ValueError, match="length must be >= 0, not -1"):
        similar_positions([1], 1, np.eye(2), -1)
