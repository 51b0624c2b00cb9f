"""GORACS: the objective it reaches, against enumeration and against a plain version of the published code."""

import functools
import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plain_goracs import mixture, plain_greedy, plain_refine
from recbole_llm.coreset import GoracsSettings, goracs_select, proxy_objective
from recbole_llm.coreset.goracs.classes import class_budgets
from recbole_llm.coreset.goracs.costs import Costs, Distances, rows_that_fit, table_bytes
from recbole_llm.coreset.goracs.exchange import promising_pairs, refine
from recbole_llm.coreset.goracs.pool import exchange_pool, nearest_pool, refine_in_pools
from recbole_llm.coreset.goracs.reference import reference_pairs, upper_tail_scores
from recbole_llm.coreset.goracs.start import fill_by_capacity, greedy_start, relaxed_greedy
from recbole_llm.coreset.goracs.transport import solve_transport
from tests.coreset.goracs.data import closed_form, random_rows
from tests.refusals import refused


def costs_of(rows, weight):
    distances = Distances(rows.train, rows.valid, dense=True)
    distances.scale_by_largest()
    return Costs(distances, weight * rows.norms.astype(np.float64) / rows.norms.max())


def objective(rows, selected, weight):
    return proxy_objective(rows.distances(), rows.norms / rows.norms.max(), selected, weight)


# ------------------------------------------------------------------------------------------------------ closed form


@pytest.mark.parametrize(
    "n, weight, n_nearest, order, at_start, best, optimum",
    [
        (3, 0.0, 4, [1, 10, 8], 0.406722855, 0.406722855, [1, 8, 10]),
        (3, 0.1, 4, [1, 10, 8], 0.351507227, 0.351507227, [1, 8, 10]),
        (4, 0.1, 4, [1, 10, 8, 6], 0.357631477, 0.354766929, [1, 3, 8, 10]),
        (4, 0.5, 5, [0, 2, 8, 10], 0.066942060, 0.066942060, [0, 2, 8, 10]),
        (5, 0.1, 4, [1, 10, 8, 6], 0.339298420, 0.333054073, [1, 6, 7, 8, 10]),
        (7, 0.1, 4, [1, 10, 8, 6], 0.371235592, 0.359252882, [1, 3, 5, 6, 7, 8, 10]),
    ],
)
def test_closed_form(n, weight, n_nearest, order, at_start, best, optimum):
    rows = closed_form()
    greedy = relaxed_greedy(costs_of(rows, weight), n)
    assert greedy.members.tolist() == order and greedy.n_nearest == n_nearest
    by_index = [*order, *np.setdiff1d(np.arange(12), order)][:n]
    assert objective(rows, by_index, weight) == pytest.approx(at_start, abs=1e-9)
    start = goracs_select(*rows, n, weight, max_exchanges=0)
    if len(order) == n:
        assert start.tolist() == sorted(order)
    assert objective(rows, start, weight) <= at_start + 1e-9
    selected, info = goracs_select(*rows, n, weight, return_info=True)
    assert selected.tolist() == optimum
    assert info.objective == pytest.approx(best, abs=1e-9) == objective(rows, selected, weight)


def test_exchanges_reach_the_optimum_from_the_greedy_rows_alone():
    rows, n_exchanges = closed_form(), []
    for n, weight in ((3, 0.0), (3, 0.1), (4, 0.1), (4, 0.5), (5, 0.1), (7, 0.1)):
        costs = costs_of(rows, weight)
        members = relaxed_greedy(costs, n).members
        start = np.r_[members, np.setdiff1d(np.arange(12), members)][:n]
        refined = refine(costs, start, 100, functools.partial(promising_pairs, n_candidates=12))
        n_exchanges.append(len(refined.trace) - 1)
        optimum = goracs_select(*rows, n, weight)
        assert sorted(refined.members) == optimum.tolist()
    assert n_exchanges == [0, 0, 1, 0, 1, 3]


# ------------------------------------------------------------------------------------- against enumeration and itself


def test_never_below_the_optimum_and_nearly_always_at_it():
    reached = []
    for seed, weight, n in itertools.product(range(4), (0.0, 0.2), (2, 4)):
        rows = random_rows(seed, n=9, m=5)
        best = min(objective(rows, list(s), weight) for s in itertools.combinations(range(9), n))
        found = objective(rows, goracs_select(*rows, n, weight), weight)
        assert found >= best - 1e-12
        reached.append(found <= best + 1e-12)
    assert np.mean(reached) > 0.85


@settings(max_examples=12)
@given(
    st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 14), st.sampled_from([0.0, 0.1, 1.0]), st.integers(1, 8)
)
def test_the_objective_never_rises(seed, n, m, weight, n_candidates):
    rows = random_rows(seed, n=24, m=m)
    selected, info = goracs_select(*rows, n, weight, 6, n_candidates, return_info=True)
    assert selected.tolist() == sorted(set(selected.tolist())) and len(selected) == n
    assert all(later < earlier for earlier, later in itertools.pairwise(info.trace)) and len(info.trace) <= 7
    assert info.trace[-1] == pytest.approx(info.objective)
    assert info.objective == pytest.approx(objective(rows, selected, weight), abs=1e-9)
    start = goracs_select(*rows, n, weight, 0, n_candidates)
    assert info.objective <= objective(rows, start, weight) + 1e-12
    assert sum(len(trace) - 1 for trace in info.starts[0].values()) <= 6


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_order_units_and_place_have_no_influence(seed):
    rows = random_rows(seed, n=25, m=7)
    rng = np.random.default_rng(seed)
    value = goracs_select(*rows, 4, 0.2, return_info=True)[1].objective
    order, columns = rng.permutation(25), rng.permutation(7)
    selected, info = goracs_select(
        rows.train[order], rows.valid[columns], 7 * rows.norms[order], 4, 0.2, return_info=True
    )
    assert info.objective == pytest.approx(value, abs=1e-9)
    assert objective(rows, order[selected], 0.2) == pytest.approx(value, abs=1e-9)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    moved = goracs_select(2 * rows.train @ turn + 5, 2 * rows.valid @ turn + 5, rows.norms, 4, 0.2, return_info=True)
    assert moved[1].objective == pytest.approx(value, abs=1e-9)


def test_scores_tell_members_from_the_rest_and_best_rows_from_worst():
    rows = random_rows(3, n=40, m=11)
    selected, info = goracs_select(*rows, 7, 0.2, return_info=True)
    costs, rest = costs_of(rows, 0.2), np.setdiff1d(np.arange(40), selected)
    assert info.scores.shape == (40,) and np.isfinite(info.scores).all()
    assert info.scores[selected].mean() > info.scores[rest].mean()
    after = [
        np.mean([solve_transport(costs.rows(np.r_[np.delete(selected, i), row])).value for i in range(7)])
        for row in rest
    ]
    assert np.corrcoef(info.scores[rest], -np.array(after))[0, 1] > 0.8


# --------------------------------------------------------------------------------------- against the published code


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_worse_than_the_published_code_with_as_many_exchanges(seed, weight):
    rows = mixture(150, 40, 8, seed)
    table = costs_of(rows, weight).rows(np.arange(150))
    start = plain_greedy(table, 15)
    for n_exchanges in (3, 12):
        plain = plain_refine(table, start, n_exchanges, 8)
        found = goracs_select(*rows, 15, weight, n_exchanges, 8, return_info=True)[1]
        assert found.objective <= plain.trace[-1] + 1e-9


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_lazy_greedy_is_plain_greedy(weight):
    rows = mixture(150, 40, 8, 5)
    costs = costs_of(rows, weight)
    for budget in (1, 6, 15):
        assert relaxed_greedy(costs, budget).members.tolist() == plain_greedy(costs.rows(np.arange(150)), budget)


def test_like_the_reference():
    """11 and 40 have no common factor: potentials are unique, and so is every decision."""
    rows = mixture(120, 40, 6, 2)
    costs = costs_of(rows, 0.1)
    table = costs.rows(np.arange(120))
    plain = plain_refine(table, plain_greedy(table, 11), 5, 6)
    selected, info = goracs_select(*rows, 11, 0.1, 5, 6, compat="reference", return_info=True)
    assert selected.tolist() == sorted(plain.members) and info.n_solves == plain.n_solves
    np.testing.assert_allclose(info.trace, plain.trace, atol=1e-9)
    start = relaxed_greedy(costs, 11).members
    found = refine(costs, start, 5, functools.partial(reference_pairs, n_candidates=6))
    np.testing.assert_allclose(found.trace, info.trace, atol=1e-12)  # the offsets' products are rounded elsewhere


def test_the_reference_scores_by_the_wrong_tail():
    reduced = np.random.default_rng(0).random((4, 9))
    level = np.sort(reduced, axis=1)[:, -3]  # ceil(9 / 4) = 3
    by_hand = level / 4 + np.minimum(reduced - level[:, None], 0).mean(axis=1)
    np.testing.assert_allclose(upper_tail_scores(reduced, 4), by_hand)


# ------------------------------------------------------------------------------------------------------- the start


@pytest.mark.parametrize("budget, m", [(3, 7), (7, 3), (6, 6), (9, 12), (1, 5)])
def test_capacity_serves_every_row_its_share(budget, m):
    rows = random_rows(budget, n=20, m=m)
    costs = costs_of(rows, 0.2)
    table = costs.rows(np.arange(20))
    left, plain, paid = np.full(m, budget), [], 0.0  # of each row m units, of each column budget units
    for _ in range(budget):
        bills = []
        for own in table:
            need, bill = m, 0.0
            for column in np.argsort(own, kind="stable"):
                taken = min(need, left[column])
                need, bill = need - taken, bill + taken * own[column]
            bills.append(bill)
        bills = np.where(np.isin(np.arange(20), plain), np.inf, bills)
        plain.append(int(np.argmin(bills)))
        paid += min(bills) / (budget * m)
        need = m
        for column in np.argsort(table[plain[-1]], kind="stable"):
            taken = min(need, left[column])
            need, left[column] = need - taken, left[column] - taken
    found = fill_by_capacity(costs, np.zeros(0, dtype=np.int64), budget)
    assert found.tolist() == plain
    assert solve_transport(costs.rows(found)).value <= paid + 1e-12
    of_start = goracs_select(*rows, budget, 0.2, 0, start="capacity")
    assert of_start.tolist() == sorted(plain) or budget == 1


def test_a_greedy_start_that_gains_nothing_more_is_filled_up():
    rows = mixture(300, 60, 6, 1)
    costs = costs_of(rows, 1.0)
    greedy = relaxed_greedy(costs, 40)
    assert len(greedy.members) < 40
    filled = greedy_start(costs, 40).members
    assert filled[: len(greedy.members)].tolist() == greedy.members.tolist() and len(set(filled.tolist())) == 40
    first = np.r_[greedy.members, np.setdiff1d(np.arange(300), greedy.members)][:40]
    assert solve_transport(costs.rows(filled)).value < solve_transport(costs.rows(first)).value


# ------------------------------------------------------------------------------------------------------ edge cases


def test_budgets_at_the_edge():
    rows = random_rows(0)
    costs = costs_of(rows, 0.3).rows(np.arange(30))
    assert goracs_select(*rows, 1, 0.3).tolist() == [int(costs.mean(axis=1).argmin())]
    assert goracs_select(*rows, 30, 0.3).tolist() == list(range(30))
    nearly_all, info = goracs_select(*rows, 29, 0.3, return_info=True)
    best = min(solve_transport(np.delete(costs, i, axis=0)).value for i in range(30))
    assert len(nearly_all) == 29 and info.objective == pytest.approx(best)
    for budget in (0, 31, 2.5):
        with refused("", "value", "budget"):
            goracs_select(*rows, budget, 0.3)


def test_weights_at_the_edge():
    rows = random_rows(1)
    without = goracs_select(rows.train, rows.valid, None, 6, 0.0)
    assert without.tolist() == goracs_select(*rows, 6, 0.0).tolist()
    largest = np.sort(np.argsort(-rows.norms)[:6])
    assert goracs_select(*rows, 6, 100.0).tolist() == largest.tolist()
    with refused("gradient_norms", "missing", "gradient_norms are missing"):
        goracs_select(rows.train, rows.valid, None, 6, 0.1)
    with refused("goracs_gradient_weight", "value", "goracs_gradient_weight"):
        goracs_select(*rows, 6, -0.1)


def test_one_validation_row_takes_the_nearest():
    rows = random_rows(2, m=1)
    costs = costs_of(rows, 0.2).rows(np.arange(30))[:, 0]
    assert goracs_select(*rows, 5, 0.2).tolist() == np.sort(np.argsort(costs)[:5]).tolist()


def test_constant_zero_and_doubled_rows(caplog):
    zeros = np.zeros((8, 2)), np.zeros((3, 2)), np.zeros(8)
    with caplog.at_level(logging.WARNING):
        assert goracs_select(*zeros, 3, 0.5).tolist() == [0, 1, 2]
    assert "all distances are 0" in caplog.text and "norms are 0" in caplog.text
    rows = random_rows(4, n=10)
    doubled = np.repeat(rows.train, 2, axis=0), rows.valid, np.repeat(rows.norms, 2)
    selected = goracs_select(*doubled, 12, 0.1)
    assert len(set(selected.tolist())) == 12
    assert selected.tolist() == goracs_select(*doubled, 12, 0.1).tolist()


def test_scaling_may_be_left_out():
    rows = random_rows(5)
    plain = rows._replace(train=rows.train / 3, valid=rows.valid / 3)
    table = np.linalg.norm(plain.train[:, None] - plain.valid[None], axis=2)
    for distances, norms in itertools.product((False, True), repeat=2):
        selected, info = goracs_select(*plain, 5, 0.2, scale_distances=distances, scale_norms=norms, return_info=True)
        by_hand = proxy_objective(
            table / table.max() if distances else table,
            plain.norms / (plain.norms.max() if norms else 1),
            selected,
            0.2,
        )
        assert info.objective == pytest.approx(by_hand, abs=1e-9)


def test_tensors_and_half_precision():
    rows = random_rows(6)
    half = [torch.tensor(values).half() for values in rows]
    selected = goracs_select(*half, 6, 0.2)
    assert isinstance(selected, torch.Tensor) and selected.dtype == torch.int64
    wide = goracs_select(*(values.double() for values in half), 6, 0.2)
    np.testing.assert_array_equal(selected, wide)


def test_bad_input_is_one_line():
    rows = random_rows(7)

    def fails(key, kind, words, train=rows.train, valid=rows.valid, norms=rows.norms, **settings):
        with refused(key, kind, words):
            goracs_select(train, valid, norms, 5, 0.2, **settings)

    broken = rows.train.copy()
    broken[4, 1] = np.nan
    fails("train_embeddings", "numeric", "1 of 30 rows hold NaN or infinity .first ids 4.", train=broken)
    valid = np.where(np.arange(36).reshape(12, 3) == 5, np.inf, rows.valid)
    fails("valid_embeddings", "numeric", "1 of 12", valid=valid)
    fails("gradient_norms", "numeric", "1 of 30", norms=np.where(np.arange(30) == 3, np.nan, rows.norms))
    fails("gradient_norms", "value", "negative", norms=-rows.norms)
    fails("gradient_norms", "conflict", "29 entries for 30 rows", norms=rows.norms[:-1])
    fails("valid_embeddings", "conflict", "3 wide and valid_embeddings 2", valid=rows.valid[:, :2])
    fails("", "missing", "at least one training and one validation row", valid=rows.valid[:0])
    large = np.where(broken == broken[0, 0], 1e200, rows.train)
    fails("GORACS", "numeric", "numbers up to 1.0e.200; scale them", train=large)
    fails("train_labels", "missing", "or neither", train_labels=np.zeros(30))
    few = {"train_labels": np.zeros(29), "valid_labels": np.zeros(12)}
    fails("train_labels", "conflict", "29 entries for 30", **few)
    fails("goracs_method", "value", "", method="fast")
    fails("goracs_compat", "value", "", compat="old")
    fails("goracs_start", "value", "", start="random")
    fails("goracs_n_candidates", "value", "", n_candidates=0)
    fails("goracs_max_exchanges", "value", "", max_exchanges=-1)
    fails("goracs_method", "conflict", "", compat="reference", method="approximate")
    with refused("goracs_scale_norms", "value", "goracs_scale_norms"):
        GoracsSettings(scale_norms=1)


# --------------------------------------------------------------------------------------------------------- classes


def labelled(seed=0):
    rows = random_rows(seed, n=40, m=15)
    return rows, (np.arange(40) % 3 == 0).astype(int), (np.arange(15) % 4 == 0).astype(int)


def test_each_class_is_selected_on_its_own_in_the_shares_of_validation():
    rows, train, valid = labelled()
    selected, info = goracs_select(*rows, 9, 0.3, train_labels=train, valid_labels=valid, return_info=True)
    assert info.budgets == {0: 9 - round(9 * 4 / 15), 1: round(9 * 4 / 15)}
    scaled, norms, total = rows.distances(), rows.norms / rows.norms.max(), 0.0
    for label, budget in info.budgets.items():
        own = np.flatnonzero(train == label)
        chosen = np.flatnonzero(np.isin(own, selected))
        assert len(chosen) == budget
        table = scaled[own][:, valid == label]
        total += np.mean(valid == label) * proxy_objective(table, norms[own], chosen, 0.3)
        largest = np.linalg.norm(rows.train[:, None] - rows.valid[None], axis=2).max()
        alone = goracs_select(
            *(rows.train[own] / largest, rows.valid[valid == label] / largest, norms[own], budget, 0.3),
            scale_distances=False,
            scale_norms=False,
        )
        assert proxy_objective(table, norms[own], alone, 0.3) == pytest.approx(
            proxy_objective(table, norms[own], chosen, 0.3), abs=1e-9
        )
    assert info.objective == pytest.approx(total, abs=1e-9)
    assert all(later < earlier for earlier, later in itertools.pairwise(info.trace))


def test_one_class_is_no_class():
    rows, _, _ = labelled(1)
    ones = np.ones(40), np.ones(15)
    assert goracs_select(*rows, 6, 0.2, train_labels=ones[0], valid_labels=ones[1]).tolist() == (
        goracs_select(*rows, 6, 0.2).tolist()
    )


def test_classes_that_one_side_lacks(caplog):
    rows, train, _ = labelled(2)
    selected = goracs_select(*rows, 6, 0.2, train_labels=train, valid_labels=np.ones(15))
    assert (train[selected] == 1).all()
    with caplog.at_level(logging.WARNING):
        selected = goracs_select(*rows, 6, 0.2, train_labels=np.zeros(40), valid_labels=np.arange(15) % 2)
    assert len(selected) == 6 and "class 1 has 0 training rows" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        selected = goracs_select(*rows, 20, 0.2, train_labels=train, valid_labels=np.ones(15))
    rest = np.setdiff1d(selected, np.flatnonzero(train))
    assert "6 rows are taken from classes that no validation row has" in caplog.text
    assert set(rest) == set(np.flatnonzero(train == 0)[np.argsort(-rows.norms[train == 0])[:6]])


@pytest.mark.parametrize(
    "sizes, valid, budget, expected",
    [
        ([50, 50], [10, 30], 6, [2, 4]),  # 4.5 and 1.5: half to even
        ([50, 50], [30, 10], 10, [8, 2]),  # 2.5 of the larger label
        ([50, 50, 50], [1, 1, 1], 7, [3, 2, 2]),
        ([1, 50, 50], [2, 1, 1], 8, [1, 4, 3]),
        ([2, 1], [1, 1], 3, [2, 1]),
        ([0, 50], [5, 5], 4, [0, 4]),
    ],
)
def test_class_budgets(sizes, valid, budget, expected):
    train_labels, valid_labels = np.repeat(np.arange(len(sizes)), sizes), np.repeat(np.arange(len(valid)), valid)
    classes, budgets = class_budgets(train_labels, valid_labels, budget)
    assert classes.tolist() == list(range(len(valid))) and budgets.tolist() == expected


# ----------------------------------------------------------------------------------------------------------- scale


def test_distances_with_and_without_a_table():
    rng = np.random.default_rng(0)
    valid = rng.normal(size=(9, 4)) + 100
    train = np.r_[valid[:3], rng.normal(size=(20, 4)) + 100]
    direct = np.linalg.norm(train[:, None] - valid[None], axis=2)
    for dense in (True, False):
        distances = Distances(train, valid, dense)
        assert distances.scale_by_largest() == pytest.approx(direct.max(), rel=1e-6)
        np.testing.assert_allclose(distances.rows(np.arange(23)), direct / direct.max(), atol=1e-6)
        np.testing.assert_allclose(
            np.concatenate([own for _, own in distances.blocks()]), distances.rows(range(23)), atol=2e-3
        )
        part = distances.part(np.array([3, 7]), np.array([1, 2]))
        np.testing.assert_allclose(part.rows(np.arange(2)), direct[[3, 7]][:, [1, 2]] / direct.max(), atol=1e-6)
    assert (Distances(train, valid, dense=True).rows(np.arange(3))[np.arange(3), np.arange(3)] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e7])
def test_blocks_keep_their_digits_far_from_the_origin(offset, dtype):
    rng = np.random.default_rng(0)
    train, valid = ((rng.normal(size=(n, 8)) + offset).astype(dtype) for n in (300, 40))
    direct = np.linalg.norm(train[:, None].astype(np.float64) - valid[None].astype(np.float64), axis=2)
    distances = Distances(train, valid, dense=False)
    errors = np.concatenate([own for _, own in distances.blocks()]) - direct
    assert np.abs(errors[direct > 0.5]).max() <= distances.rounding < 1e-5
    selected, info = goracs_select(train, valid, None, 12, 0.0, 3, method="exact", table_gib=1e-6, return_info=True)
    true = proxy_objective(direct / direct.max(), None, selected, 0.0)
    assert info.objective == pytest.approx(true, abs=1e-6)


@pytest.mark.parametrize("table_gib", [1.0, 1e-6])
@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1e10, 1e30])
def test_the_unit_of_the_vectors_has_no_influence(unit, table_gib):
    rows = random_rows(8, n=60)
    settings = {"method": "exact", "table_gib": table_gib, "return_info": True}
    expected, plain = goracs_select(*rows, 5, 0.1, **settings)
    selected, info = goracs_select(unit * rows.train, unit * rows.valid, rows.norms, 5, 0.1, **settings)
    assert info.objective == pytest.approx(plain.objective, abs=1e-6)
    if table_gib == 1.0:
        assert selected.tolist() == expected.tolist()


def test_a_far_row_and_collapsed_vectors():
    rng = np.random.default_rng(0)
    train, valid = rng.normal(size=(500, 8)), rng.normal(size=(40, 8))
    near = goracs_select(train[1:], valid, None, 10, 0.0, 3) + 1
    train[0] = 1e6
    assert goracs_select(train, valid, None, 10, 0.0, 3).tolist() == near.tolist()
    noise = 1e-8 * rng.normal(size=(230, 8))
    collapsed = goracs_select(noise[:200] + np.eye(8)[0], noise[200:], None, 10, 0.0, 3)
    assert len(set(collapsed.tolist())) == 10


def test_the_exact_way_needs_no_table():
    rows = mixture(200, 50, 6, 3)
    _, dense = goracs_select(*rows, 12, 0.1, 4, 6, return_info=True)
    _, blocks = goracs_select(*rows, 12, 0.1, 4, 6, method="exact", table_gib=1e-6, return_info=True)
    assert blocks.method == dense.method == "exact"
    assert blocks.objective == pytest.approx(dense.objective, abs=1e-6)


def test_the_approximate_way_and_what_it_says(caplog):
    rows = mixture(900, 60, 6, 4)
    _, exact = goracs_select(*rows, 20, 0.1, 10, 8, return_info=True)
    with caplog.at_level(logging.INFO):
        selected, found = goracs_select(*rows, 20, 0.1, 10, 8, pool_size=300, table_gib=3e-4, return_info=True)
    assert found.method == "approximate" and exact.method == "exact" and exact.missed_gain == 0
    assert "GORACS, approximate: 20 rows" in caplog.text and f"of {found.n_considered} considered" in caplog.text
    assert 300 <= found.n_considered <= 600 and found.missed_gain >= 0
    assert found.objective <= exact.objective + 0.02 * abs(exact.objective)
    table = costs_of(rows, 0.1)
    assert solve_transport(table.rows(selected)).value == pytest.approx(found.objective, abs=1e-5)
    again = goracs_select(*rows, 20, 0.1, 10, 8, pool_size=300, method="approximate", seed=0)
    assert again.tolist() == selected.tolist()


def test_tables_of_the_approximate_way_fit_into_the_limit(caplog, monkeypatch):
    sizes, make = [], Distances.__init__

    def watched(self, *arguments, **options):
        make(self, *arguments, **options)
        sizes.append(0 if self.table is None else self.table.nbytes)

    monkeypatch.setattr(Distances, "__init__", watched)
    rows = mixture(900, 60, 6, 4)
    limit = 60 * 8 * 120  # bytes: 120 rows
    with caplog.at_level(logging.INFO):
        _, found = goracs_select(*rows, 20, 0.1, 1, 4, pool_size=300, table_gib=limit / 2**30, return_info=True)
    assert 60 <= found.n_considered <= 120 and 0 < max(sizes) <= limit
    assert "pools of 60 rows, not 300" in caplog.text and "more than goracs_table_gib" not in caplog.text
    sizes.clear()
    goracs_select(*rows, 40, 0.1, 1, 4, pool_size=300, table_gib=limit / 2**30)
    assert max(sizes) <= 160 * 60 * 8 and "two pools of twice the budget, 80 rows each" in caplog.text


@pytest.mark.parametrize("n_valid", [1, 3, 1000])
@pytest.mark.parametrize("n_bytes", [0, 10**4, 2**24, 2**25 - 1, 2**25, 10**8])
def test_rows_that_fit(n_valid, n_bytes):
    n_rows = rows_that_fit(n_valid, n_bytes)
    assert table_bytes(n_rows, n_valid) <= n_bytes < table_bytes(n_rows + 1, n_valid) or n_bytes < 2**25


def test_one_row_is_the_best_of_all_in_every_way():
    rows = mixture(500, 60, 6, 4)
    means = costs_of(rows, 0.1).rows(np.arange(500)).mean(axis=1)
    for seed in range(3):
        assert goracs_select(*rows, 1, 0.1, method="approximate", pool_size=20, seed=seed).tolist() == [means.argmin()]
    labels = np.arange(500) % 2, np.r_[np.zeros(59), 1]
    selected, info = goracs_select(
        *rows, 30, 0.1, train_labels=labels[0], valid_labels=labels[1], method="approximate", pool_size=20,
        return_info=True,
    )  # fmt: skip
    assert info.budgets[0] == 30 and len(selected) == 30
    selected, info = goracs_select(
        *rows, 59, 0.1, train_labels=labels[0], valid_labels=labels[1], method="approximate", pool_size=20,
        return_info=True,
    )  # fmt: skip
    own = np.flatnonzero(labels[0] == 1)
    best = own[costs_of(rows, 0.1).rows(own)[:, -1].argmin()]
    assert info.budgets[1] == 1 and best in selected


def test_exchanges_search_the_rows_that_the_start_promises_beside_the_first_pool():
    """The first pool is half a sample; what it misses comes in by the second, in which rows of neither may stand."""
    rows, outside = random_rows(0, 160, 12), 0
    costs = costs_of(rows, 0.1)
    for seed in range(4):
        first = nearest_pool(costs, 24, np.random.default_rng(seed))
        start = refine_in_pools(costs, 6, 0, 8, 24, np.random.default_rng(seed)).kept.refined.members
        found = refine_in_pools(costs, 6, 10, 8, 24, np.random.default_rng(seed))
        second = exchange_pool(costs, start, 24)
        assert np.isin(start, first).all() and len(second) == 24
        np.testing.assert_array_equal(found.pool, np.union1d(first, second))
        assert np.isin(found.kept.refined.members, found.pool).all()
        outside += int((~np.isin(found.kept.refined.members, first)).sum())
    assert outside > 0


def test_a_pool_of_all_rows_is_the_exact_way():
    rows = mixture(150, 40, 6, 4)
    exact = goracs_select(*rows, 10, 0.1, 2, 30)
    assert goracs_select(*rows, 10, 0.1, 2, 30, method="approximate", pool_size=999).tolist() == exact.tolist()
