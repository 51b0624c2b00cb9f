"""Mixtures of LoRAs, routers and ranks from spectra: worked cases, definitions and identities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.adapter import (
    allocate_ranks,
    gate_weights,
    instance_lora,
    load_balance_loss,
    mixed_lora,
    mo_sara_branch,
    rank_from_spectrum,
    route_experts,
)

seeds = st.integers(0, 10_000)
spectra = st.lists(st.floats(0.01, 10), min_size=1, max_size=6)


def layer(seed, n=3, r=2, m=4, o=5, b=2, t=3):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (b, t, m), "A": (n, r, m), "B": (n, o, r), "weights": (b, n)}
    return {name: torch.randn(*shape, generator=generator).double() for name, shape in shapes.items()}


@given(seeds)
@settings(max_examples=20)
def test_mixtures_are_their_definitions(seed):
    parts = layer(seed)
    x, a, b, w = parts.values()
    product = [0.7 * sum(w[i, k] * x[i] @ a[k].T @ b[k].T for k in range(3)) for i in range(2)]
    factors = [
        0.7 * x[i] @ sum(w[i, k] * a[k] for k in range(3)).T @ sum(w[i, k] * b[k] for k in range(3)).T for i in range(2)
    ]
    torch.testing.assert_close(mixed_lora(**parts, scaling=0.7), torch.stack(product))
    torch.testing.assert_close(mixed_lora(**parts, scaling=0.7, mix="factors"), torch.stack(factors))
    # The product is iLoRA's layer of rank n * r with an expert for each block of r ranks.
    stacked = instance_lora(x, a.reshape(6, 4), b.permute(1, 0, 2).reshape(5, 6), w, 0.7)
    torch.testing.assert_close(mixed_lora(**parts, scaling=0.7), stacked)


def test_experts_part_from_the_start_under_products_only():
    """At B = 0 the gradients of B_1 and B_2 are one matrix times a weight under factors."""
    parts = layer(1, n=2)
    for mix, parallel in (("factors", True), ("product", False)):
        b = torch.zeros_like(parts["B"]).requires_grad_()
        out = mixed_lora(parts["x"][:1], parts["A"], b, parts["weights"][:1], 1.0, mix)
        (gradient,) = torch.autograd.grad((out * torch.arange(15).reshape(1, 3, 5)).sum(), b)
        cosine = torch.cosine_similarity(gradient[0].flatten(), gradient[1].flatten(), dim=0).abs()
        assert (cosine > 1 - 1e-9) == parallel


def test_gates_of_worked_examples():
    logits = np.array([[1.0, 0.0], [2.0, 2.0]])
    np.testing.assert_allclose(gate_weights(logits)[0], [0.731059, 0.268941], atol=1e-6)
    np.testing.assert_allclose(gate_weights(logits, 10.0)[0], [0.524979, 0.475021], atol=1e-6)
    np.testing.assert_allclose(gate_weights(logits, 1e9), 0.5, atol=1e-8)
    assert gate_weights(logits, top_k=1).tolist() == [[1, 0], [1, 0]]  # the lower expert of a tie
    np.testing.assert_allclose(gate_weights(logits, square_root=True) ** 2, gate_weights(logits))
    with pytest.raises(ValueError, match="top_k"):
        gate_weights(logits, top_k=3)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_roots_of_gates_learn_even_where_a_gate_is_shut(top_k):
    logits = torch.tensor([[0.3, -0.2, 900.0], [0.0, 1.0, -900.0]], dtype=torch.float64, requires_grad=True)
    roots = gate_weights(logits, 2.0, square_root=True, top_k=top_k)
    np.testing.assert_allclose(roots.detach() ** 2, gate_weights(logits.detach(), 2.0, top_k=top_k), atol=1e-12)
    (gradient,) = torch.autograd.grad(roots[1].sum(), logits)
    p = gate_weights(logits.detach(), 2.0, top_k=top_k)[1]
    torch.testing.assert_close(gradient[1], (p.sqrt() - p * p.sqrt().sum()) / 4)


def test_the_router_of_a_worked_example():
    states, router = [[2.0, 0], [0, 1], [1, 0]], np.eye(2)
    votes, scores, expert = route_experts(states, router)
    np.testing.assert_allclose(scores, [1.880797, 1.119203], atol=1e-6)
    assert expert == 0
    assert float(load_balance_loss(votes)) == pytest.approx(1.084622, abs=1e-6)
    assert float(load_balance_loss(np.full((4, 2), 0.5)[:0])) == 0
    even = np.array([[0.9, 0.1], [0.1, 0.9]])
    assert float(load_balance_loss(even)) == pytest.approx(1)
    padded = route_experts([*states, [9.0, -9.0]], router, [True, True, True, False])
    np.testing.assert_allclose(padded[1], scores)
    np.testing.assert_allclose(padded[0][3], np.exp([9, -9]) / np.exp([9, -9]).sum())  # a vote that does not count
    assert float(load_balance_loss(padded[0], [True, True, True, False])) == pytest.approx(1.084622, abs=1e-6)


@given(spectra, st.floats(0, 1), st.integers(1, 3), st.integers(3, 8))
def test_a_rank_by_counting(values, threshold, low, high):
    ordered = sorted(values, reverse=True)
    k = 1
    while k < len(ordered) and sum(ordered[:k]) < threshold * sum(ordered) * (1 - 1e-6):
        k += 1
    high = min(high, len(values))
    assert (
        rank_from_spectrum(values, threshold, low, high) == min(max(k, min(low, high)), high) if low <= high else True
    )


@pytest.mark.parametrize("n", [1, 4, 10])
def test_ranks_of_special_matrices(n):
    for m in (0.01, 0.3, 0.5, 1.0):
        assert rank_from_spectrum(np.ones(n), m) == max(1, int(np.ceil(m * n - 1e-6 * n)))
        assert rank_from_spectrum([7.0] + [0.0] * (n - 1), m) == 1


@given(st.lists(spectra, min_size=1, max_size=3), st.integers(0, 12))
@settings(max_examples=60)
def test_a_budget_takes_the_largest_share_that_fits(all_values, budget):
    named = {str(i): values for i, values in enumerate(all_values)}
    shares = {0.0} | {
        min(sum(sorted(v, reverse=True)[:k]) / sum(v), 1.0) for v in all_values for k in range(1, len(v) + 1)
    }
    options = [allocate_ranks(named, threshold=share) for share in sorted(shares)]
    fitting = [option for option in options if sum(option.values()) <= budget]
    if fitting:
        assert sum(allocate_ranks(named, budget=budget).values()) == sum(fitting[-1].values())
    else:
        with pytest.raises(ValueError, match="below r_min"):
            allocate_ranks(named, budget=budget)


def test_budgets_of_a_worked_example():
    named = {"a": (4, 3, 2, 1), "b": (10, 1, 1, 1)}
    assert [list(allocate_ranks(named, budget=n).values()) for n in (4, 5, 99)] == [[3, 1], [3, 2], [4, 4]]


@given(seeds)
@settings(max_examples=15)
def test_the_branch_of_diagonals_is_its_matrix_and_the_best_approximation(seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(5, 4))
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    x, lam, gates, v = rng.normal(size=(3, 4)), rng.normal(size=(2, 2)), rng.random((3, 2)), rng.normal(size=5)
    found = mo_sara_branch(x, u[:, :2], vt[:2], lam, gates, v)
    for row, g in zip(range(3), gates, strict=True):
        matrix = np.diag(v) @ u[:, :2] @ sum(g[e] * np.diag(lam[e]) for e in range(2)) @ vt[:2]
        np.testing.assert_allclose(found[row], matrix @ x[row], atol=1e-10)
    low = mo_sara_branch(np.eye(4), u[:, :2], vt[:2], s[None, :2], np.ones((4, 1)), np.ones(5)).T
    others = [u[:, list(ij)] * s[list(ij)] @ vt[list(ij)] for ij in itertools.combinations(range(4), 2)]
    assert np.linalg.norm(weight - low) == pytest.approx(min(np.linalg.norm(weight - other) for other in others))
    assert not mo_sara_branch(x, u[:, :2], vt[:2], lam, gates, np.zeros(5)).any()


@pytest.mark.parametrize("values", [[], [1.0, -1.0], [math.nan, 1.0], [math.inf]])
def test_a_spectrum_that_is_none_has_no_rank(values):
    with pytest.raises(ValueError, match="finite numbers >= 0"):
        rank_from_spectrum(values, 0.5)


@pytest.mark.parametrize(("low", "high"), [(0, None), (3, 2)])
def test_limits_of_a_rank_that_exclude_each_other_are_refused(low, high):
    with pytest.raises(ValueError, match="1 <= r_min <= r_max"):
        rank_from_spectrum([2.0, 1.0], 0.5, low, high)


def test_ranks_are_allocated_by_a_share_or_by_a_budget_and_not_by_both():
    spectra = {"q": [4.0, 3, 2, 1], "v": [10.0, 1, 1, 1]}
    by_share = allocate_ranks(spectra, threshold=0.7)
    assert by_share == {name: rank_from_spectrum(own, 0.7) for name, own in spectra.items()}
    for both in ({}, {"threshold": 0.7, "budget": 5}):
        with pytest.raises(ValueError, match="either a threshold or a budget"):
            allocate_ranks(spectra, **both)
    with pytest.raises(ValueError, match="a budget of 3 ranks is below r_min"):
        allocate_ranks(spectra, budget=3, r_min=2)


def test_a_temperature_a_share_or_a_mix_that_means_nothing_is_refused():
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be > 0"):
            gate_weights(np.eye(2), temperature)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            rank_from_spectrum([2.0, 1.0], share)
    with pytest.raises(ValueError, match="'sum' is not known; choose product or factors"):
        mixed_lora(**layer(0), scaling=1.0, mix="sum")


def test_sums_that_differ_by_rounding_are_a_tie():
    """Two opposite items vote for two experts equally; how the sums round is no reason to take the second."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        state, router = rng.normal(size=3), rng.normal(size=(2, 3))
        assert route_experts([state, -state], router)[2] == 0
    assert route_experts([[1.0, 0.0]], [[0.0, 0.0], [1e-12, 0.0]])[2] == 1


def test_many_votes_of_single_precision_are_counted_exactly():
    assert route_experts(torch.tensor([[0.0, 1e-5]] * 200), torch.eye(2))[2] == 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        states, router = torch.randn(300, 8, generator=generator), 0.02 * torch.randn(6, 8, generator=generator)
        votes, _, expert = route_experts(states, router)
        exact = (states.double() @ router.double().T).softmax(dim=1).sum(dim=0)
        assert expert == int(exact.argmax()) and votes.dtype == torch.float32
    for k in (3, 4, 6):  # each expert gets the same votes of other items: a tie
        for _ in range(50):
            votes = torch.randn(k, generator=generator)
            assert route_experts(torch.stack([votes.roll(place) for place in range(k)]), torch.eye(k))[2] == 0


def test_half_precision_and_gates_of_another_type():
    x = torch.randn(2, 3, 4).bfloat16()
    a, b, gates = torch.randn(2, 2, 4).bfloat16(), torch.randn(2, 5, 2).bfloat16(), torch.tensor([[0.25, 0.75], [1, 0]])
    for mix in ("product", "factors"):
        found = mixed_lora(x, a, b, gates, 2.0, mix)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(
            found.float(), mixed_lora(x.float(), a.float(), b.float(), gates, 2.0, mix), rtol=0.1, atol=0.2
        )


def test_masks_and_routers_that_do_not_match_are_refused():
    for call in (lambda: route_experts([[1.0]], [[1.0]], [True, False]), lambda: load_balance_loss([[1.0]], [[True]])):
        with pytest.raises(ValueError, match=r"mask \[1\] is needed, True for real items"):
            call()
    for router in ([[1.0, 2.0]], np.zeros((0, 1))):
        with pytest.raises(ValueError, match=r"states \[n, d\] and a router \[k, d\] do not match"):
            route_experts([[1.0]], router)
