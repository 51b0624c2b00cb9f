"""A comparison over seeds and users errs as seldom as it says, whatever seeds, users and gains are like."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recbole_llm.evaluation import compare_two_level, holm
from recbole_llm.report.layout import FALSE_ALARMS

N_USERS, N_SIMULATIONS = 500, 1000
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def ndcg(rng: np.random.Generator, hit_probability: np.ndarray) -> np.ndarray:
    """Gains of rows that are mostly 0: NDCG@10 of a target that is found so often, at any of ten places."""
    hits = rng.random(hit_probability.shape) < hit_probability
    return hits / np.log2(rng.integers(0, 10, hit_probability.shape) + 2)


def normal(seed_sd: float, user_sd: float) -> Draw:
    """Two models that are the same, with seeds that differ by so many standard errors of a mean over users."""

    def draw(rng: np.random.Generator, k: int) -> tuple[np.ndarray, np.ndarray]:
        users, scale = rng.normal(0, 1, (2, 1, N_USERS)), seed_sd / math.sqrt(N_USERS)
        own = user_sd * users + rng.normal(0, 1, (2, k, N_USERS)) + rng.normal(0, scale, (2, k, 1))
        return own[0], own[1]

    return draw


def zero_inflated(spread: float) -> Draw:
    """Gains of a few hits, of users who differ, with seeds that scale how many there are."""

    def draw(rng: np.random.Generator, k: int) -> tuple[np.ndarray, np.ndarray]:
        users = rng.gamma(0.5, 2, N_USERS)
        own = 0.05 * np.exp(rng.normal(0, spread, (2, k, 1))) * users
        return ndcg(rng, np.minimum(own[0], 1)), ndcg(rng, np.minimum(own[1], 1))

    return draw


def collapsing(rng: np.random.Generator, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Three seeds in ten learn nothing."""
    own = np.where(rng.random((2, k, 1)) < 0.3, 0.002, 0.08) * np.ones(N_USERS)
    return ndcg(rng, own[0]), ndcg(rng, own[1])


SAME: dict[str, Draw] = {
    "seeds outweigh users": normal(10, 0),
    "seeds as users": normal(1, 0),
    "weak seeds": normal(0.2, 0),
    "no effect of seeds": normal(0, 0),
    "users prefer one of the models": normal(0.5, 1),
    "seeds by model, users prefer one": normal(1.5, 1),
    "few hits, strong seeds": zero_inflated(0.5),
    "few hits, weak seeds": zero_inflated(0.05),
}


WEAK = ("weak seeds", "no effect of seeds", "few hits, weak seeds")
FAST = ("seeds outweigh users", "no effect of seeds", "users prefer one of the models", "few hits, strong seeds")
SEEDS = [
    pytest.param(case, k, marks=[] if k == 5 and case in FAST else pytest.mark.slow) for case in SAME for k in (5, 10)
]


@pytest.mark.parametrize(("case", "k"), SEEDS)
def test_equal_models_differ_as_seldom_as_promised(case, k):
    """Where seeds hardly matter the test is more cautious: theirs or that over users counts, whichever is less sure."""
    assert (0.01 if case in WEAK else 0.03) <= false_alarms(case, k) <= 0.065


@pytest.mark.slow
@pytest.mark.parametrize("case", [*SAME, "seeds a little above users who prefer one"])
@pytest.mark.parametrize("k", FALSE_ALARMS)
def test_few_seeds_err_as_seldom_as_tables_say(case, k):
    assert false_alarms(case, k) <= FALSE_ALARMS[k] / 100 + 0.01


def false_alarms(case: str, k: int) -> float:
    """How often equal models differ at the level of 5 %."""
    draw = SAME.get(case, normal(3, 0.5))
    rng = np.random.default_rng([*SAME, case].index(case) * 100 + k)
    return float(np.mean([compare_two_level(*draw(rng, k)).p < 0.05 for _ in range(N_SIMULATIONS)]))


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0, 2), st.booleans())
def test_seeds_that_agree_make_nothing_surer_than_it_is_over_users(seed, k, seed_sd, same_seeds):
    a, b = normal(seed_sd, 0.5)(np.random.default_rng(seed), k)
    found = compare_two_level(a, b, seeds=None if same_seeds else (range(k), range(k, 2 * k)))
    (low, high), (users_low, users_high) = found.seeds_and_users, found.users
    assert high - low >= users_high - users_low and found.p >= found.p_users


@pytest.mark.parametrize("k", [5, pytest.param(10, marks=pytest.mark.slow)])
def test_seeds_that_collapse_are_no_more_often_wrong(k):
    """Means of few possible values are not normal; the t test is then the more cautious, never the less."""
    rng = np.random.default_rng(9)
    assert np.mean([compare_two_level(*collapsing(rng, k)).p < 0.05 for _ in range(N_SIMULATIONS)]) <= 0.065


def test_over_users_alone_strong_seeds_look_certain():
    """Why seeds are counted: the same simulations, by the users of these very runs."""
    rng = np.random.default_rng(1)
    p_values = [compare_two_level(*SAME["seeds outweigh users"](rng, 5)).p_users for _ in range(200)]
    assert np.mean(np.array(p_values) < 0.05) > 0.5


@pytest.mark.parametrize("case", ["seeds outweigh users", "few hits, strong seeds", "no effect of seeds"])
def test_other_seeds_on_each_side_are_compared_as_seldom_wrongly(case):
    rng = np.random.default_rng(2)
    seeds = (range(5), range(5, 10))
    found = [compare_two_level(*SAME[case](rng, 5), seeds=seeds) for _ in range(N_SIMULATIONS)]
    assert not any(one.is_paired for one in found)
    assert np.mean([one.p < 0.05 for one in found]) <= 0.065


@pytest.mark.parametrize("k", [5, 10])
def test_a_better_model_is_found_in_the_right_direction(k):
    rng = np.random.default_rng(3)
    found = []
    for _ in range(200):
        worse, better = normal(1, 0.5)(rng, k)
        found.append(compare_two_level(better + 0.4, worse))
    assert np.mean([one.p < 0.05 and one.difference > 0 for one in found]) > 0.95
    assert not any(one.p < 0.05 and one.difference < 0 for one in found)


def test_intervals_hold_the_true_difference_as_often_as_promised():
    rng = np.random.default_rng(4)
    held = []
    for _ in range(N_SIMULATIONS):
        a, b = normal(2, 1)(rng, 5)
        low, high = compare_two_level(a + 0.3, b).seeds_and_users
        held.append(low <= 0.3 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_the_detectable_difference_is_found_four_times_out_of_five():
    rng = np.random.default_rng(5)
    sizes = [compare_two_level(*normal(1, 0)(rng, 10)).detectable for _ in range(300)]
    found = []
    for _ in range(600):
        a, b = normal(1, 0)(rng, 10)
        found.append(compare_two_level(a + np.sqrt(np.mean(np.square(sizes))), b).p < 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_identical_seeds_of_users_are_the_t_test_of_their_means():
    """Without users' own preferences the test is that of the seeds' means: here the rest is exactly additive."""
    rng = np.random.default_rng(6)
    by_seed = rng.normal(0.2, 0.1, 6)
    a = np.repeat(by_seed[:, None], 40, axis=1)
    outcome = compare_two_level(a, np.zeros((6, 40)))
    expected = stats.ttest_1samp(by_seed, 0)
    assert outcome.p == pytest.approx(expected.pvalue)
    assert outcome.seeds_and_users == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_deterministic_models_and_one_seed_are_the_t_test_over_users():
    rng = np.random.default_rng(7)
    a, b = rng.normal(0.1, 1, 200), rng.normal(0, 1, 200)
    expected = stats.ttest_rel(a, b)
    for own, other in ((a, b), (np.tile(a, (4, 1)), np.tile(b, (4, 1)))):
        outcome = compare_two_level(own, other)
        assert outcome.p == pytest.approx(expected.pvalue) and outcome.p_users == pytest.approx(expected.pvalue)
        assert outcome.users == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert outcome.counts_seeds == (own.ndim == 2)
    assert compare_two_level(a, np.tile(b, (4, 1))).n_seeds == (1, 4)
    assert not compare_two_level(a, np.tile(b, (4, 1))).counts_seeds
    # By the normal approximation instead of the t distribution of 199 degrees of freedom.
    smallest = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * (a - b).std(ddof=1) / math.sqrt(200)
    assert compare_two_level(a, b).detectable == pytest.approx(smallest, rel=0.02)


def test_the_variance_is_that_of_the_analysis_of_variance():
    """By the sums of squares of the textbook, whose parts are what seeds, users and the rest leave over."""
    rng = np.random.default_rng(8)
    d = 3 * rng.normal(size=(4, 1)) + 2 * rng.normal(size=(1, 9)) + rng.normal(size=(4, 9))
    total, k, n = d.sum(), 4, 9
    ss_seeds = (d.sum(axis=1) ** 2).sum() / n - total**2 / (k * n)
    ss_users = (d.sum(axis=0) ** 2).sum() / k - total**2 / (k * n)
    ss_rest = (d**2).sum() - total**2 / (k * n) - ss_seeds - ss_users
    seeds, users = ss_seeds / (k - 1), ss_users / (n - 1) - ss_rest / (k - 1) / (n - 1)
    variance = (seeds + users) / (k * n)
    degrees = (seeds + users) ** 2 / (seeds**2 / (k - 1) + users**2 / (n - 1))
    outcome = compare_two_level(d, np.zeros_like(d))
    assert outcome.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / math.sqrt(variance), degrees))
    width = stats.t.ppf(0.975, degrees) * math.sqrt(variance)
    assert outcome.seeds_and_users == pytest.approx((d.mean() - width, d.mean() + width))


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.integers(2, 30))
def test_p_and_interval_agree_and_the_order_of_models_users_and_seeds_changes_nothing(seed, k, other, n):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(k, n)), rng.normal(size=(other, n))
    ids, seeds = [f"u{place}" for place in range(n)], (list(range(k)), list(range(other)))
    forth = compare_two_level(a, b, users=(ids, ids), seeds=seeds)
    back = compare_two_level(b, a, seeds=seeds[::-1])
    assert back.difference == pytest.approx(-forth.difference) and back.p == pytest.approx(forth.p)
    low, high = forth.seeds_and_users or forth.users
    assert (forth.p < 0.05) == (not low <= 0 <= high)
    users, runs = rng.permutation(n), rng.permutation(other)
    moved = compare_two_level(
        a, b[runs][:, users], users=(ids, [ids[user] for user in users]), seeds=(seeds[0], [int(r) for r in runs])
    )
    for name, value in vars(forth).items():
        if value is None or isinstance(value, bool):
            assert getattr(moved, name) == value
        else:
            assert getattr(moved, name) == pytest.approx(value, abs=1e-9), name


def test_models_that_are_equal_everywhere():
    same = compare_two_level(np.ones((3, 5)), np.ones((3, 5)))
    assert (same.difference, same.p, same.p_users, same.seeds_and_users) == (0, 1, 1, (0, 0))


def test_different_users_are_refused():
    with pytest.raises(ValueError, match="a has 3 users, b has 2: give their ids"):
        compare_two_level([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="1 users are only in a, such as 'y'"):
        compare_two_level([1, 2], [1, 2], users=("xy", "xz"))
    with pytest.raises(ValueError, match="b has 2 users and 1 different ids"):
        compare_two_level([1, 2], [1, 2], users=("xy", "xx"))
    with pytest.raises(ValueError, match=r"seeds: b has 2 runs and the seeds \[1, 1\]"):
        compare_two_level(np.ones((2, 3)), np.ones((2, 3)), seeds=([1, 2], [1, 1]))
    for a, message in [([1], "two users"), ([[[1, 2]]], "seeds, users"), ([1, np.nan], "NaN")]:
        with pytest.raises(ValueError, match=message):
            compare_two_level(a, a)
    with pytest.raises(ValueError, match="confidence"):
        compare_two_level([1, 2], [1, 3], confidence=95)


def test_holm_by_its_definition():
    values = [0.03, 0.001, 0.04, 0.02, 0.9]
    expected = [0.09, 0.005, 0.09, 0.08, 0.9]  # ordered: 0.001 * 5, 0.02 * 4, 0.03 * 3, 0.04 * 2 (raised), 0.9
    assert holm(values) == pytest.approx(expected)
    assert holm([]) == [] and holm([0.7, 0.8]) == [1, 1]
    with pytest.raises(ValueError, match="p-values"):
        holm([1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_helps_keeps_order_and_stays_below_bonferroni(values):
    corrected = holm(values)
    assert all(p <= c <= min(1, p * len(values)) + 1e-12 for p, c in zip(values, corrected, strict=True))
    pairs = sorted(zip(values, corrected, strict=True))
    assert all(first[1] <= second[1] for first, second in zip(pairs, pairs[1:], strict=False))


@pytest.mark.parametrize("exponent", [-1000, -550, -270, 0, 260, 900])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 3), (2, 4)])
def test_another_unit_of_the_gains_changes_nothing_else(exponent, sizes):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(size, 5)) for size in sizes)
    plain = compare_two_level(a, b)
    other = compare_two_level(np.ldexp(a, exponent), np.ldexp(b, exponent))
    assert (other.p, other.p_users) == pytest.approx((plain.p, plain.p_users), rel=1e-9)
    for name in ("difference", "detectable", "users", "seeds_and_users"):
        one, unit = getattr(plain, name), getattr(other, name)
        assert one is unit is None or np.ldexp(unit, -exponent) == pytest.approx(one, rel=1e-9)


def test_a_tiny_difference_of_one_user_is_not_certain():
    y = np.zeros((2, 4))
    y[0, 0] = 1e-200
    found = compare_two_level(y, np.zeros((2, 4)))
    assert found.p_users == pytest.approx(2 * stats.t.sf(1, 3)) and found.p == pytest.approx(2 * stats.t.sf(1, 1))
