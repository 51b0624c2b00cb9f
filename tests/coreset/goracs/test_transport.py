"""The objective and what potentials say about exchanges, against independent programmes and by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from recbole_llm.coreset import proxy_objective
from recbole_llm.coreset.goracs.exchange import lower_bounds, raise_bounds
from recbole_llm.coreset.goracs.transport import dual_facts, marginal_costs, solve_transport
from recbole_llm.coreset.lazy_greedy import lazy_argmin
from tests.coreset.goracs.data import closed_form
from tests.refusals import refused

SIZES = [(3, 5), (5, 3), (4, 4), (4, 8), (6, 4), (2, 1), (7, 12)]


def programme(costs):
    """Transport between uniform masses as a linear programme."""
    n, m = costs.shape
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    masses = np.r_[np.full(n, 1 / n), np.full(m, 1 / m)]
    return linprog(costs.ravel(), A_eq=np.r_[rows, columns], b_eq=masses, method="highs").fun


@pytest.mark.parametrize(
    "selected, value", [([0], 1.8), ([0, 1], 0.85), ([0, 2], 0.375), ([1, 2], 1.425), ([0, 1, 2], 0.8833333333333333)]
)
def test_numbers_by_hand(selected, value):
    distances, norms = [[0.0, 4.0], [2.0, 2.0], [5.0, 1.0]], [1, 0.5, 0.25]
    assert proxy_objective(np.array(distances), norms, selected, 0.2) == pytest.approx(value, abs=1e-12)
    assert proxy_objective(torch.tensor(distances), torch.tensor(norms), selected[::-1], 0.2) == pytest.approx(value)


@pytest.mark.parametrize("n, m", SIZES)
def test_objective_equals_a_linear_programme(n, m):
    rng = np.random.default_rng(n + m)
    distances, norms = rng.random((12, m)), rng.random(12)
    rows = rng.permutation(12)[:n]
    for weight in (0.0, 0.3, 5.0):
        expected = programme(distances[rows]) - weight * norms[rows].mean()
        assert proxy_objective(distances, norms, rows, weight) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 7))
def test_objective_knows_no_order_and_shifts_with_constants(seed, n, m):
    rng = np.random.default_rng(seed)
    distances, norms = rng.random((8, m)), rng.random(8)
    rows = rng.permutation(8)[:n]
    value = proxy_objective(distances, norms, rows, 0.4)
    rows_moved, columns_moved = rng.permutation(8), rng.permutation(m)
    places = np.argsort(rows_moved)[rows]
    moved = proxy_objective(distances[rows_moved][:, columns_moved], norms[rows_moved], places, 0.4)
    assert moved == pytest.approx(value, abs=1e-12)
    assert proxy_objective(3 * distances + 2, 3 * norms, rows, 0.4) == pytest.approx(3 * value + 2, abs=1e-11)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e-10, 1e-7, 1.0, 1e10, 1e200])
def test_objective_scales_with_the_unit_of_the_costs(scale):
    rng = np.random.default_rng(3)
    distances = rng.random((10, 40))
    expected = proxy_objective(distances, None, range(10), 0.0)
    assert proxy_objective(scale * distances, np.zeros(10), range(10), 0.0) / scale == pytest.approx(
        expected, rel=1e-12
    )
    cold = solve_transport(scale * distances)
    columns = (scale * distances - cold.potentials[:, None]).min(axis=0)
    assert cold.potentials.mean() + columns.mean() == pytest.approx(cold.value, rel=1e-9)
    assert solve_transport(scale * distances, cold.potentials).value == pytest.approx(cold.value, rel=1e-12)
    assert solve_transport(np.full((4, 6), scale)).value == scale


def test_norms_may_be_left_out_where_they_have_no_weight():
    distances = np.random.default_rng(0).random((5, 3))
    assert proxy_objective(distances, None, [1, 4], 0.0) == proxy_objective(distances, np.ones(5), [1, 4], 0.0)
    with refused("gradient_norms", "missing"):
        proxy_objective(distances, None, [1, 4], 0.1)


def test_bad_selections_are_one_line():
    distances, norms = np.ones((3, 2)), np.ones(3)
    for selected, key, words in (
        ([0, 0], "coreset", "more than once"),
        ([3], "selected", "indices of the 3"),
        ([-1], "selected", "indices"),
        ([], "selected", "at least"),
    ):
        with refused(key, "value", words):
            proxy_objective(distances, norms, selected, 0.0)
    with refused("gradient_weight", "value", "gradient_weight"):
        proxy_objective(distances, norms, [0], -1.0)
    with refused("distances", "numeric", "1 of 3 rows hold NaN"):
        proxy_objective(np.array([[1.0], [np.nan], [1.0]]), norms, [0], 0.0)


@pytest.mark.parametrize("n, value", [(2, 0.09), (3, 0.0466667), (5, 0.02), (8, 0.0125)])
def test_marginal_costs_by_hand(n, value):
    for order in itertools.islice(itertools.permutations([0.1, 0.2, 0.3, 0.4, 0.5]), 0, 120, 17):
        assert marginal_costs(np.array([order]), n)[0] == pytest.approx(value, abs=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_marginal_costs_are_the_maximum_of_the_dual_and_shift_with_potentials(seed, n, m):
    reduced = np.random.default_rng(seed).normal(size=(3, m))
    found = marginal_costs(reduced.copy(), n)
    best = [max(y / n + np.minimum(own - y, 0).mean() for y in own) for own in reduced]
    np.testing.assert_allclose(found, best, atol=1e-12)
    np.testing.assert_allclose(marginal_costs(reduced + 2.5, n), found + 2.5 / n, atol=1e-12)


@pytest.mark.parametrize("n, m", [(n, m) for n, m in SIZES if n > 1])
def test_bounds_of_every_exchange(n, m):
    rng = np.random.default_rng(10 * n + m)
    table = rng.random((n + 5, m)) - 0.3 * rng.random((n + 5, 1))
    own, others = table[:n], table[n:]
    value, potentials, plan = solve_transport(own)
    duals = dual_facts(own, potentials)
    below = lower_bounds(others, duals, np.arange(n), n)
    for i in range(n):
        assert duals.removal[i] + marginal_costs(own[i : i + 1] - duals.without(i), n)[0] == pytest.approx(value)
        for o, row in enumerate(others):
            swapped = np.r_[own[:i], [row], own[i + 1 :]]
            true = programme(swapped)
            above = value + plan[i] @ (row - own[i])
            assert below[i, o] <= true + 1e-10 and true <= above + 1e-10
    assert potentials.mean() + duals.nearest.mean() == pytest.approx(value)


@pytest.mark.parametrize("n, m", [(n, m) for n, m in SIZES if n > 1])
def test_what_was_tried_bounds_other_exchanges(n, m):
    rng = np.random.default_rng(20 * n + m)
    own, others = rng.random((n, m)), rng.random((4, m))
    places, duals = rng.permutation(n)[:3], dual_facts(own, solve_transport(own).potentials)
    bounds = lower_bounds(others, duals, places, n)

    def swapped(member, other):
        return np.r_[own[: places[member]], others[other : other + 1], own[places[member] + 1 :]]

    true = np.array([[programme(swapped(member, other)) for other in range(4)] for member in range(len(places))])
    for member, other in itertools.product(range(len(places)), range(4)):
        before = bounds.copy()
        potentials = solve_transport(swapped(member, other)).potentials
        raise_bounds(bounds, own, others, places, member, other, potentials)
        assert np.isinf(bounds[member, other])
        bounds[member, other] = true[member, other]
        assert (bounds >= before - 1e-10).all() and (bounds <= true + 1e-10).all()


def test_one_exchange_step_of_the_closed_form():
    """S = {0, 1, 2}, weight 0.1: potentials are unique up to a constant here, as 3 and 5 have no common factor."""
    costs = closed_form().costs(0.1)
    value, potentials, plan = solve_transport(costs[:3])
    assert value == pytest.approx(0.431407050, abs=1e-9)
    np.testing.assert_allclose(potentials - potentials[0], [0, -0.052051, -0.032485], atol=1e-6)
    np.testing.assert_allclose(15 * plan, [[0, 0, 0, 3, 2], [3, 0, 1, 0, 1], [0, 3, 2, 0, 0]], atol=1e-9)
    bounds = lower_bounds(costs[3:], dual_facts(costs[:3], potentials), np.arange(3), 3)
    np.testing.assert_allclose(bounds[:, 0], [0.408285, 0.442429, 0.446088], atol=1e-6)
    np.testing.assert_allclose(bounds[:, 5], [0.386679, 0.422597, 0.424482], atol=1e-6)
    np.testing.assert_allclose(bounds[:, 8], [0.433701, 0.488619, 0.477847], atol=1e-6)
    assert np.unravel_index(bounds.argmin(), bounds.shape) == (0, 5)
    assert np.count_nonzero(bounds >= value) == 15


@pytest.mark.parametrize("n, m", SIZES)
def test_potentials_to_begin_with_change_no_value(n, m):
    rng = np.random.default_rng(n)
    costs = rng.random((n, m))
    cold = solve_transport(costs)
    for start in (cold.potentials, rng.normal(size=n)):
        assert solve_transport(costs, start).value == pytest.approx(cold.value, abs=1e-12)


def test_an_unsolved_transport_is_an_error(monkeypatch):
    from recbole_llm.coreset.goracs import transport

    monkeypatch.setattr(transport, "_MAX_PIVOTS", 3)
    with pytest.raises(RuntimeError, match="did not solve"), pytest.warns(UserWarning):
        solve_transport(np.random.default_rng(0).random((20, 30)))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 90))
def test_lazy_argmin_is_argmin(seed, n):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 5, n).astype(float)
    bounds = values - rng.integers(0, 2, n)
    asked = []

    def evaluate(rows):
        asked.extend(rows.tolist())
        return values[rows]

    assert lazy_argmin(bounds, evaluate) == values.argmin()
    assert len(set(asked)) == len(asked) and (bounds <= values).all()
