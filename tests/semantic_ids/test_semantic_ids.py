"""Codes of items: worked cases, the same in plain loops, and what gradients reach."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.semantic_ids import (
    CodeTrie,
    assignment_probabilities,
    codebook_loss,
    collision_rate,
    disambiguate,
    dynamic_head,
    quantisation_loss,
    residual_quantise,
    sinkhorn_assignment,
    snap_to_codebook,
)

BOOKS = np.array([[[0.0, 0], [4, 0]], [[0, 0], [1, 1]]])
seeds = st.integers(0, 10_000)


@given(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=30)
def test_quantisation_by_loops(seed, levels, k, d):
    rng = np.random.default_rng(seed)
    vectors, books = rng.integers(-3, 4, size=(6, d)) / 2, rng.integers(-3, 4, size=(levels, k, d)) / 2
    codes, residuals, found = residual_quantise(vectors, books)
    loss = 0.0
    for n, vector in enumerate(vectors):
        left = vector
        for level, book in enumerate(books):
            distances = [float(((left - word) ** 2).sum()) for word in book]
            assert codes[n, level] == distances.index(min(distances))  # the lower code of a tie
            left = left - book[codes[n, level]]
            loss += 1.25 * float((left**2).sum()) / len(vectors)
            np.testing.assert_allclose(residuals[n, level], left)
        np.testing.assert_allclose(found[n], vector - left, atol=1e-12)
    assert float(quantisation_loss(vectors, books, codes)) == pytest.approx(loss)
    assert float(quantisation_loss(vectors, books, codes, reduction="mean")) == pytest.approx(loss / (levels * d))


def test_gradients_of_quantisation_reach_codewords_and_vectors_apart():
    vectors = torch.tensor([[4.9, 1.2]], dtype=torch.float64, requires_grad=True)
    books = torch.tensor(BOOKS, requires_grad=True)
    codes, _, _ = residual_quantise(vectors, books)
    loss = quantisation_loss(vectors, books, codes, commitment=0.5)
    to_vectors, to_books = torch.autograd.grad(loss, (vectors, books))
    # Residuals (.9, 1.2) and (-.1, .2): twice each for its codeword, half of twice their sum for the vector.
    torch.testing.assert_close(to_vectors[0], torch.tensor([0.9 - 0.1, 1.2 + 0.2], dtype=torch.float64))
    torch.testing.assert_close(to_books[0, 1], -2 * torch.tensor([0.9, 1.2], dtype=torch.float64))
    torch.testing.assert_close(to_books[1, 1], -2 * torch.tensor([-0.1, 0.2], dtype=torch.float64))
    assert not to_books[:, 0].any()


def test_probable_codewords():
    found = assignment_probabilities(np.zeros((1, 1)), np.sqrt([[0.1], [2.0]]), 2.0)
    np.testing.assert_allclose(found, [[0.721115, 0.278885]], atol=1e-6)
    np.testing.assert_allclose(assignment_probabilities([[0.0]], [[1.0], [3.0]], 1e-3), [[1, 0]], atol=1e-12)


@given(seeds, st.floats(0.05, 2))
@settings(max_examples=20)
def test_a_balanced_plan_by_plain_scaling(seed, epsilon):
    distances = np.random.default_rng(seed).random((6, 3))
    plan = np.exp(
        -(distances - (distances.max() + distances.min()) / 2)
        / ((distances.max() - distances.min()) / 2 + 1e-5)
        / epsilon
    )
    plan /= plan.sum()
    for _ in range(50):
        plan /= plan.sum(axis=1, keepdims=True) * 6
        plan /= plan.sum(axis=0, keepdims=True) * 3
    np.testing.assert_allclose(sinkhorn_assignment(distances, epsilon), 6 * plan, atol=1e-9)
    assert np.isfinite(sinkhorn_assignment(distances * 1e6, 0.003)).all()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=12), st.randoms())
def test_counters_make_codes_unique_and_move_nothing_else(codes, random):
    unique = disambiguate(codes)
    assert unique[:, :2].tolist() == [list(code) for code in codes]
    assert unique[:, 2].tolist() == [codes[:item].count(code) for item, code in enumerate(codes)]
    assert collision_rate(unique) == 0
    assert collision_rate(codes) == pytest.approx(sum(n - 1 for n in Counter(codes).values()) / len(codes))
    order = random.sample(range(len(codes)), len(codes))
    assert sorted(map(tuple, disambiguate([codes[i] for i in order]).tolist())) == sorted(map(tuple, unique.tolist()))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=15))
def test_a_trie_by_looking_through_all_codes(codes):
    trie = CodeTrie(codes)
    for prefix in {code[:n] for code in codes for n in range(4)} | {(9,), (0, 9), (0, 0, 0, 0)}:
        follow = {code[len(prefix)] for code in codes if code[: len(prefix)] == prefix and len(prefix) < 3}
        assert trie.allowed(prefix) == sorted(follow)
        assert trie.item(prefix) == (codes.index(prefix) if prefix in codes else None)


def test_items_of_one_code_are_the_lowest_of_them():
    trie = CodeTrie([[1, 2], [0, 0], [1, 2]])
    assert (trie.item([1, 2]), trie.item([0, 0]), trie.allowed([1])) == (0, 1, [2])
    with pytest.raises(ValueError, match="items, levels"):
        CodeTrie([1, 2])


def test_snapping_and_its_loss():
    vectors = torch.tensor([[0.9, 0.4], [2.2, 0.1]], dtype=torch.float64, requires_grad=True)
    book = torch.tensor([[0.0, 0], [1, 1], [3, 0]], dtype=torch.float64, requires_grad=True)
    codes, snapped = snap_to_codebook(vectors, book)
    assert codes.tolist() == [1, 2]
    assert float(codebook_loss(vectors, snapped).detach()) == pytest.approx(0.255)
    to_vectors, to_book = torch.autograd.grad(snapped.sum(), (vectors, book), allow_unused=True)
    assert to_vectors is None
    assert to_book.tolist() == [[0, 0], [1, 1], [1, 1]]


@given(seeds, st.floats(0, 1))
@settings(max_examples=20)
def test_a_generated_head_row_by_row(seed, clip):
    rng = np.random.default_rng(seed)
    x, weights, biases = rng.normal(size=(3, 4)), rng.normal(size=(2, 3, 4, 2)), rng.normal(size=(2, 3, 2))
    found = dynamic_head(x, weights[0], biases[0], weights[1], biases[1], clip)
    for row in range(3):
        weight = np.clip(weights[0, row], -clip, clip) + weights[1, row]
        np.testing.assert_allclose(
            found[row], x[row] @ weight + np.clip(biases[0, row], -clip, clip) + biases[1, row], atol=1e-12
        )


def test_no_levels_and_no_items():
    codes, residuals, found = residual_quantise([[1.0, 2.0]], np.zeros((0, 3, 2)))
    assert (codes.shape, residuals.shape, found.tolist()) == ((1, 0), (1, 0, 2), [[0, 0]])
    assert float(quantisation_loss([[1.0, 2.0]], np.zeros((0, 3, 2)), codes, reduction="mean")) == 0
    trie = CodeTrie([])
    assert (trie.allowed([]), trie.allowed([1]), trie.item([]), trie.item([1])) == ([], [], None, None)


@pytest.mark.parametrize("code", [2, -1])
def test_a_code_without_a_codeword_is_refused(code):
    with pytest.raises(ValueError, match=f"code {code} is out of range: there are 2"):
        quantisation_loss([[4.9, 1.2]], BOOKS, [[0, code]])


def test_widths_that_differ_are_refused():
    for call in (
        lambda: assignment_probabilities([[1.0]], BOOKS[0], 1.0),
        lambda: snap_to_codebook([[1.0]], BOOKS[0]),
        lambda: residual_quantise([[1.0]], BOOKS),
        lambda: codebook_loss([[1.0, 2.0]], [[1.0], [2.0]]),
        lambda: dynamic_head([[1.0, 2.0]], BOOKS[:1], [[0.0]], BOOKS[:1], [[0.0, 0.0]], 1.0),
    ):
        with pytest.raises(ValueError, match="do not match"):
            call()
    with pytest.raises(ValueError, match="has no codewords"):
        snap_to_codebook([[1.0]], np.zeros((0, 1)))
    with pytest.raises(ValueError, match="clip must be >= 0, not -1"):
        dynamic_head([[1.0, 2.0]], BOOKS[:1], [[0.0, 0.0]], BOOKS[:1], [[0.0, 0.0]], -1)
