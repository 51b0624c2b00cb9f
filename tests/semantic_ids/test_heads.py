"""Generated heads and classes of items, without any recommender."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_llm.semantic_ids.heads import (
    Condition,
    GeneratedHead,
    SequenceVectors,
    classes_of_sets,
    classes_of_vectors,
    default_classes,
)


def head(**settings):
    torch.manual_seed(0)
    return GeneratedHead(6, **settings).double()


def test_a_head_is_its_formula_row_by_row():
    made, rng = head(layers=2, clip=0.02), torch.Generator().manual_seed(1)
    x, c2, c1 = (torch.randn(3, 6, generator=rng, dtype=torch.float64) for _ in range(3))
    c1 *= 20  # so that some entries lie beyond the clip
    for row, found in enumerate(made(x, c2, c1)):
        state = x[row]
        for layer in range(2):
            item, semantic = made.item, made.semantic
            weight = (c1[row] @ item["weight_map"][layer] + item["weight"][layer]).clamp(-0.02, 0.02)
            weight = weight + c2[row] @ semantic["weight_map"][layer] + semantic["weight"][layer]
            bias = (c1[row] @ item["bias_map"][layer] + item["bias"][layer]).clamp(-0.02, 0.02)
            bias = bias + c2[row] @ semantic["bias_map"][layer] + semantic["bias"][layer]
            state = state @ weight.view(6, 6) + bias
            state = torch.tanh(state) if layer == 0 else state
        assert found.tolist() == pytest.approx(state.tolist(), abs=1e-12)


def test_a_head_begins_near_tanh_and_all_its_matrices_learn():
    made = head(layers=2, clip=0.01)
    x, c2, c1 = torch.rand(5, 6).double(), torch.rand(5, 6).double(), torch.rand(5, 6).double()
    assert (made(x, c2, c1) - torch.tanh(x)).abs().max() < 0.15
    made(x, c2, c1).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in made.parameters())


def test_a_clip_of_nothing_leaves_items_out():
    made = head(layers=2, clip=0.0)
    x, c2 = torch.rand(2, 6).double(), torch.rand(2, 6).double()
    one, other = (made(x, c2, torch.rand(2, 6).double()) for _ in range(2))
    assert torch.equal(one, other)


def test_padding_behind_a_sequence_is_not_read():
    torch.manual_seed(0)
    condition, vectors = Condition(4).eval(), SequenceVectors(4, 8).eval()
    embedded, lengths = torch.rand(2, 8, 4), torch.tensor([3, 5])
    other = embedded.clone()
    other[0, 3:] = 9.0
    found = [condition(vectors(one), lengths) for one in (embedded, other)]
    assert torch.equal(*found)


def test_sets_are_classes_while_there_are_few():
    sets = [[], ["a"], ["a", "b"], ["c"], ["b", "a"], []]
    assert classes_of_sets(sets, 4).tolist() == [0, 1, 2, 3, 2, 4]
    rng = np.random.default_rng(0)
    many = [[], *([f"big{i % 3}", f"small{rng.integers(40)}"] for i in range(300))]
    found = classes_of_sets(many, 3)
    for kind in range(3):  # joined by what they share
        own = found[1 + np.flatnonzero(np.arange(300) % 3 == kind)]
        assert (own == np.bincount(own).argmax()).mean() > 0.9


def test_like_vectors_are_a_class():
    rng = np.random.default_rng(0)
    centres = np.eye(5)[rng.permutation(np.repeat(np.arange(5), 20))]
    vectors = np.concatenate(
        [np.zeros((1, 5)), (centres + 0.05 * rng.normal(size=centres.shape)) * rng.uniform(1, 9, (100, 1))]
    )
    found = classes_of_vectors(vectors, 5, seed=1)
    assert found[0] == 0 and found[1] == 1 and set(found[1:]) == {1, 2, 3, 4, 5}
    assert len(set(zip(found[1:].tolist(), centres.argmax(axis=1).tolist(), strict=True))) == 5
    assert classes_of_vectors(vectors, 5, seed=1).tolist() == found.tolist()


def test_there_are_no_more_classes_than_vectors():
    assert classes_of_vectors(np.array([[0.0, 0], [1, 0], [2, 0], [0, 3]]), 9).max() == 2
    assert [default_classes(n) for n in (20, 200, 9000)] == [2, 10, 256]
