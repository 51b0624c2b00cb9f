"""The largest values of rows, against a stable sort of all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from recbole_llm.top_k import TIED_ROWS, top_k

WIDTH = 6
VALUES = st.sampled_from([0.0, 1.0, 1.5, -2.0, -math.inf])


@given(st.lists(st.lists(VALUES, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=4), st.integers(0, WIDTH + 2))
@example([[1.0] * WIDTH] * 2, 3)
@example([[-math.inf] * WIDTH, [0.0, -math.inf, -math.inf, 1.0, 0.0, -math.inf]], 4)
def test_equal_values_are_ordered_by_index(rows, k):
    values, index = top_k(torch.tensor(rows), k)
    expected = np.argsort(-np.array(rows), axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(np.array(rows), expected, axis=1)
    np.testing.assert_array_equal(values, found)
    np.testing.assert_array_equal(index.numpy()[np.isfinite(found)], expected[np.isfinite(found)])
    assert all(len(set(own)) == len(own) for own in index.tolist()) and index.dtype == torch.int64


@pytest.mark.parametrize(("n_rows", "k"), [(0, 2), (2, 0), (2, 3)])
def test_no_rows_and_no_columns_give_none(n_rows, k):
    values, index = top_k(torch.empty(n_rows, 0 if k == 3 else 4), k)
    assert values.shape == index.shape == (n_rows, 0 if k == 3 else k)


class Sorted(TorchFunctionMode):
    """Notes how wide the tensors are that are sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.sort:
            self.widths.add(args[0].shape[1])
        return func(*args, **(kwargs or {}))


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_ties_need_no_full_order(seed, k):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(TIED_ROWS + 6, 300, generator=generator).to(torch.bfloat16).float()
    values = values * (torch.rand(values.shape, generator=generator) < 0.5)
    with Sorted() as watch:
        found, index = top_k(values, k)
    exact = values.sort(dim=1, descending=True, stable=True)
    assert torch.equal(index, exact.indices[:, :k]) and torch.equal(found, exact.values[:, :k])
    assert watch.widths == {k}  # what was chosen, and never the whole rows
