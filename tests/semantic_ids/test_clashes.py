"""Vectors of one code share the last level's codewords out: who moves, who stays, and that codes get fewer clashes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.semantic_ids import collision_rate, residual_quantise, spread_codes

BOOKS = torch.tensor([[[0.0, 0], [10, 0]], [[0.0, 0], [0, 3]]], dtype=torch.float64)


def test_the_clashing_ones_get_the_free_codewords_nearest_to_them():
    points = torch.tensor([[0.1, 0.2], [0.1, 1.2], [10, 0], [10, 2.9]], dtype=torch.float64)
    assert residual_quantise(points, BOOKS)[0].tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]
    assert spread_codes(points, BOOKS, epsilon=0.003).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    # The codeword of one that has its code for itself is not taken from it.
    taken = torch.cat([points, torch.tensor([[0.0, 3.0]], dtype=torch.float64)])
    assert spread_codes(taken, BOOKS, epsilon=0.003).tolist() == residual_quantise(taken, BOOKS)[0].tolist()


def test_equal_vectors_stay_together():
    points = np.array([[0.1, 0.2], [0.1, 0.2]])
    assert np.array_equal(spread_codes(points, BOOKS.numpy(), 0.003), np.array([[0, 0], [0, 0]]))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 6))
def test_beginnings_stay_clashes_do_not_grow_and_those_without_stay_where_they_are(seed, levels, n_codes):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    books = torch.randn(levels, n_codes, 3, generator=generator, dtype=torch.float64)
    nearest = residual_quantise(points, books)[0]
    found = spread_codes(points, books, 0.003)
    assert torch.equal(found[:, :-1], nearest[:, :-1]) and int(found.max()) < n_codes
    assert collision_rate(found) <= collision_rate(nearest)
    _, whole, counts = torch.unique(nearest, dim=0, return_inverse=True, return_counts=True)
    assert torch.equal(found[counts[whole] == 1], nearest[counts[whole] == 1])


def test_as_many_codewords_as_vectors_of_one_beginning_leave_no_clash():
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(6, 4, generator=generator, dtype=torch.float64) * 0.1
    book = torch.randn(1, 8, 4, generator=generator, dtype=torch.float64)
    assert collision_rate(residual_quantise(points, book)[0]) > 0
    assert collision_rate(spread_codes(points, book, 0.003)) == pytest.approx(0)


def test_what_is_no_number_has_no_nearest_codeword():
    with pytest.raises(ValueError, match="hold NaN"):
        residual_quantise([[float("nan"), 1.0]], [[[0.0, 0.0], [1.0, 1.0]]])
