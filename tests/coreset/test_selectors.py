"""Every selector: the promises all make, then what each one is for."""

import json
import logging

import numpy as np
import pytest
import torch

from recbole_llm import coreset
from recbole_llm.coreset import (
    CCSSelector,
    D2PruningSelector,
    DEALRecSelector,
    DSIRSelector,
    EL2NSelector,
    FDMatSelector,
    GoracsSelector,
    GraNdSelector,
    HerdingSelector,
    KCenterSelector,
    ModerateSelector,
    QDITSelector,
    RandomSelector,
    RecRankerSelector,
    Selector,
    TFDConSelector,
    combine_scores,
    score_strata,
    stratified_sample,
)
from recbole_llm.coreset import vectors as vectors_module
from recbole_llm.coreset.checks import checked_ids
from recbole_llm.coreset.d2_pruning import d2_select
from recbole_llm.coreset.dsir import log_importance
from recbole_llm.coreset.selector import gumbel_top
from recbole_llm.coreset.tf_dcon import proportional_quotas
from recbole_llm.coreset.vectors import k_means, nearest_neighbours, unit_vectors
from tests.processes import fresh_python
from tests.refusals import refused

SELECTORS = [
    RandomSelector(),
    EL2NSelector(),
    GraNdSelector(),
    CCSSelector(n_groups=8, hard_prune_ratio=0.0),
    KCenterSelector(),
    HerdingSelector(),
    D2PruningSelector(),
    DSIRSelector(n_buckets=500),
    TFDConSelector(n_clusters=6),
    RecRankerSelector(n_clusters=4),
    DEALRecSelector(n_groups=8, hard_prune_ratio=0.0),
    GoracsSelector(max_exchanges=3),
    ModerateSelector(),
    FDMatSelector(n_targets=40, max_exchanges=2),
    QDITSelector(),
]
OPTIONAL = ("labels", "valid_labels")
N = 90


def world(n=N, seed=0):
    """Everything that any selector needs, of n rows."""
    rng = np.random.default_rng(seed)
    words = np.array("alpha beta gamma delta epsilon zeta eta theta iota kappa".split())
    return {
        "influence": rng.normal(size=n),
        "effort": rng.exponential(size=n),
        "el2n": rng.random((n, 3)),
        "grand": rng.random(n),
        "vectors": rng.normal(size=(n, 5)).astype(np.float32),
        "recommender_vectors": rng.normal(size=(n, 4)),
        "llm_vectors": rng.normal(size=(n, 7)),
        "history_lengths": rng.integers(1, 30, n),
        "texts": [" ".join(rng.choice(words, 6)) for _ in range(n)],
        "target_texts": ["alpha beta alpha", "gamma beta"],
        "embeddings": rng.normal(size=(n, 4)).astype(np.float32),
        "valid_embeddings": rng.normal(size=(17, 4)).astype(np.float32),
        "gradient_norms": rng.random(n),
        "quality": rng.normal(size=n),
        "labels": np.arange(n) % 2,
        "valid_labels": np.arange(17) % 2,
    }


def needed(selector, values):
    return {need.name: values[need.name] for need in selector.needs}


def take(selector, inputs, order):
    moved = dict(inputs)
    for need in selector.needs:
        if need.per_row:
            values = inputs[need.name]
            moved[need.name] = [values[i] for i in order] if isinstance(values, list) else values[order]
    return moved


@pytest.fixture(params=SELECTORS, ids=lambda selector: selector.name)
def selector(request):
    return request.param


@pytest.mark.parametrize("budget", [0, 1, 17, N - 1, N])
def test_as_many_different_ids_as_asked_for(selector, budget):
    ids = np.arange(N) * 3 + 5
    chosen, scores = selector.select(ids, budget, seed=1, **needed(selector, world()))
    assert len(chosen) == budget and chosen.tolist() == sorted(set(chosen.tolist()))
    assert np.isin(chosen, ids).all() and chosen.dtype == np.int64
    assert scores.shape == (N,) and scores.dtype == np.float64 and np.isfinite(scores).all()


def test_permuting_rows_permutes_the_result(selector):
    inputs, rng = needed(selector, world()), np.random.default_rng(1)
    ids = rng.permutation(1000)[:N]
    chosen, scores = selector.select(ids, 20, seed=4, **inputs)
    for _ in range(2):
        order = rng.permutation(N)
        again, moved = selector.select(ids[order], 20, seed=4, **take(selector, inputs, order))
        np.testing.assert_array_equal(again, chosen)
        np.testing.assert_array_equal(moved, scores[order])


def test_the_seed_decides_and_global_random_state_does_not(selector):
    inputs = needed(selector, world())
    results = []
    for state in (1, 2):
        np.random.seed(state)
        torch.manual_seed(state)
        results.append(selector.select(np.arange(N), 20, seed=9, **inputs))
    np.testing.assert_array_equal(results[0].ids, results[1].ids)
    np.testing.assert_array_equal(results[0].scores, results[1].scores)


def test_more_than_there_are_is_all_with_a_warning(selector, caplog):
    with caplog.at_level(logging.WARNING):
        chosen, _ = selector.select(np.arange(N), N + 1, **needed(selector, world()))
    np.testing.assert_array_equal(chosen, np.arange(N))
    assert f"exceeds the {N} rows" in caplog.text


@pytest.mark.parametrize("n", [1, 2])
def test_one_row_and_rows_that_are_all_alike(selector, n):
    values = {name: [v[0]] * n if isinstance(v, list) else np.repeat(v[:1], n, axis=0) for name, v in world().items()}
    inputs = needed(selector, values | {"target_texts": ["alpha"]})
    chosen, scores = selector.select(np.arange(n), 1, **inputs)
    assert len(chosen) == 1 and np.isfinite(scores).all()


def test_a_budget_that_covers_all_rows_leaves_none_out(selector):
    inputs = needed(selector, world())
    for budget in (N, N + 5, 1.0):
        assert selector.select(np.arange(N), budget, **inputs).ids.tolist() == list(range(N))


@pytest.mark.parametrize("share", [1.0, 0.3, np.float32(0.5), 1 / N])
def test_a_decimal_is_a_share_and_an_integer_a_count(selector, share):
    inputs = needed(selector, world())
    found = selector.select(np.arange(N), share, seed=2, **inputs)
    expected = selector.select(np.arange(N), int(share * N + 1e-4), seed=2, **inputs)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_a_share_is_of_the_decimal_as_it_is_written_and_of_at_least_one_row():
    assert len(RandomSelector().select(np.arange(100), 0.29).ids) == 29  # 28.999... in floating point
    with refused("budget", "value", "budget: 0.001 of 90 rows is less than one; raise it"):
        RandomSelector().select(np.arange(90), 0.001)
    for wrong in (0.0, 1.01, -0.1, np.nan, True, "0.5", None):
        with refused("budget", "value", "budget: .* give an integer >= 0 .a count. or a decimal in"):
            RandomSelector().select(np.arange(90), wrong)


def test_ids_may_be_texts_in_any_order(selector):
    """Rows count in the order of their ids; what the ids are changes nothing else."""
    inputs, rng = needed(selector, world()), np.random.default_rng(3)
    texts = np.array([f"row {number:03}" for number in range(N)])  # in the order of the numbers
    expected = selector.select(np.arange(N), 20, seed=4, **inputs)
    order = rng.permutation(N)
    for ids in (texts[order], texts[order].tolist(), texts[order].astype(object)):
        found = selector.select(ids, 20, seed=4, **take(selector, inputs, order))
        assert found.ids.tolist() == texts[expected.ids].tolist()
        np.testing.assert_array_equal(found.scores, expected.scores[order])


@pytest.mark.parametrize(
    "ids",
    [
        [("b", 1), ("a", 2), ("a", 1)],
        np.array(["2020-01-03", "2020-01-02", "2020-01-01"], dtype="datetime64[D]"),
        [2.5, 1.5, 0.5],
        [2**70, 5, 3],
        np.array([2**64 - 1, 5, 3], dtype=np.uint64),
        ["10", "9", "1"],
    ],
)
def test_ids_of_any_type_that_has_an_order(ids):
    selection = RandomSelector().select(ids, 2, seed=0)
    expected = RandomSelector().select(np.argsort(np.argsort(checked_ids(ids))), 2, seed=0)
    assert selection.ids.tolist() == [sorted(checked_ids(ids).tolist())[place] for place in expected.ids]
    np.testing.assert_array_equal(selection.scores, expected.scores)


def test_ids_without_an_order_or_twice_are_refused():
    for ids, words in (
        (["a", 1], "row ids have no order .*give ids of one type"),
        (["b", "a", "b"], "1 row ids occur more than once .first b."),
        ([1.0, np.nan], "1 row ids are NaN"),
    ):
        with refused("coreset", "value", words):
            RandomSelector().select(ids, 1)
    with pytest.raises(ValueError, match="ids must be .n."):
        RandomSelector().select(np.zeros((2, 2), dtype=int), 1)


def test_what_is_printed_is_one_short_line(selector):
    assert repr(selector).startswith(type(selector).__name__ + "(") and len(repr(selector)) < 80
    assert repr(type(selector)()) == f"{type(selector).__name__}()"
    assert eval(repr(selector), {type(selector).__name__: type(selector)}) == selector


def test_a_large_selection_is_printed_in_one_line():
    selection = RandomSelector().select(np.arange(100_000), 0.9)
    assert len(repr(selection)) < 120 and "\n" not in repr(selection)
    assert repr(selection).startswith("Selection(90,000 of 100,000 rows: ")
    assert repr(RandomSelector().select([], 0)) == "Selection(0 of 0 rows)"


def test_no_row_gives_none(selector):
    values = {name: v[:0] for name, v in world().items()} | {
        "target_texts": ["alpha"],
        "texts": np.array([], dtype=str),
    }
    if "texts" in needed(selector, values):
        return
    chosen, scores = selector.select([], 0, **needed(selector, values))
    assert chosen.shape == scores.shape == (0,)


def test_tensors_and_half_precision_are_taken(selector):
    inputs = needed(selector, world())
    tensors = {name: values if isinstance(values, list) else torch.tensor(values) for name, values in inputs.items()}
    expected = selector.select(np.arange(N), 20, **inputs)
    found = selector.select(torch.arange(N), 20, **tensors)
    np.testing.assert_array_equal(found.ids, expected.ids)
    if "vectors" in tensors:
        selector.select(torch.arange(N), 20, **tensors | {"vectors": tensors["vectors"].bfloat16()})


def test_bad_input_is_one_line(selector):
    inputs = needed(selector, world())

    def fails(key, kind, words, ids=None, budget=5, **changed):
        with refused(key, kind, words):
            selector.select(np.arange(N) if ids is None else ids, budget, **{**inputs, **changed})

    fails("coreset", "value", "2 row ids occur more than once .first 3, 5", ids=np.r_[[3, 5], 2:N])
    fails("budget", "value", "budget: -1", budget=-1)
    fails("budget", "value", "budget: 2.5", budget=2.5)
    fails("loses", "unknown", "takes no loses", loses=[1])
    for need in selector.needs:
        values = inputs[need.name]
        if need.name in OPTIONAL:
            fails(
                need.name, "value", "must be .n., one finite label per row", **{need.name: np.full(len(values), np.nan)}
            )
            continue
        fails(need.name, "missing", f"coreset {selector.name} needs {need.name}", **{need.name: None})
        if need.name == "valid_embeddings":
            fails(need.name, "numeric", "valid_embeddings: 17 of 17 rows hold NaN", **{need.name: values * np.nan})
            continue
        if not need.per_row or isinstance(values, list):
            fails(need.name, "value", "must be a list of texts", **{need.name: [1, 2]})
            continue
        fails(need.name, "conflict", "89 entries for 90 rows", **{need.name: values[:-1]})
        broken = np.array(values, dtype=float)
        broken[[4, 7]] = np.nan
        fails(
            need.name,
            "numeric",
            f"{need.name}: 2 of 90 rows hold NaN or infinity .first ids 14, 17",
            ids=np.arange(N) + 10,
            **{need.name: broken},
        )


def test_settings_are_read_under_the_name_of_the_selector(selector):
    keys = {f"{selector.name}_{field}": value for field, value in selector.facts().items() if field != "coreset"}
    assert type(selector).from_settings(keys | {"lora_r": 3}).facts() == selector.facts()
    assert selector.facts()["coreset"] == selector.name
    assert type(selector).from_settings({}).name == selector.name
    for key, value in keys.items():
        with refused(key, "value"):
            type(selector).from_settings({key: "log" if isinstance(value, str) else -1})


def test_a_search_tells_of_itself_in_plain_values():
    values = world()
    for selector in (GoracsSelector(max_exchanges=3), FDMatSelector(40, 2)):
        selection = selector.select(np.arange(N), 20, **needed(selector, values))
        outcome = json.loads(json.dumps(selection.outcome))
        assert outcome == selection.outcome and outcome["method"] == "exact" and len(outcome["trace"]) > 1
        assert outcome["objective"] == pytest.approx(outcome["trace"][-1])
        assert sum(outcome["budgets"].values()) == 20 and outcome["n_solves"] > 0 and outcome["missed_gain"] == 0
        assert set(outcome["starts"]) == {"0", "1"}
        ids, scores = selection  # a pair still
        assert ids is selection.ids and scores is selection.scores
    assert RandomSelector().select(np.arange(N), 20).outcome == {}


def test_an_input_without_a_part_in_the_choice_may_be_left_out():
    values = needed(GoracsSelector(), world())
    assert not GoracsSelector().unused() and not QDITSelector().unused()
    selector = GoracsSelector(gradient_weight=0.0)
    (name,) = selector.unused()
    without = selector.select(np.arange(N), 9, **{key: value for key, value in values.items() if key != name})
    np.testing.assert_array_equal(selector.select(np.arange(N), 9, **values).ids, without.ids)


def test_inputs_are_described_as_data():
    for selector in SELECTORS:
        assert isinstance(selector, Selector)
        assert all(need.name and need.meaning for need in selector.needs)
    assert len({selector.name for selector in SELECTORS}) == len(SELECTORS)


# ------------------------------------------------------------------------------------------------------ one by one


def test_random_is_uniform_and_nested():
    counts = np.bincount(np.concatenate([RandomSelector().select(np.arange(10), 3, seed).ids for seed in range(900)]))
    assert abs(counts / 900 - 0.3).max() < 0.06
    small, large = (RandomSelector().select(np.arange(50), budget, 5).ids for budget in (10, 30))
    assert set(small) < set(large)


@pytest.mark.parametrize("selector", [EL2NSelector(), GraNdSelector()], ids=lambda selector: selector.name)
def test_highest_scores_ties_by_lower_id(selector):
    values = np.array([0.5, 0.9, 0.5, 0.1, 0.9, 0.5])
    assert selector.select(np.arange(6), 3, **{selector.name: values}).ids.tolist() == [0, 1, 4]
    repeated = np.stack([values + 0.1, values - 0.1], axis=1)
    np.testing.assert_allclose(selector.select(np.arange(6), 3, **{selector.name: repeated}).scores, values)


def test_ccs_and_dealrec_are_stratified_samples():
    values = world()
    el2n = values["el2n"].mean(axis=1)
    ccs = CCSSelector(n_groups=7, hard_prune_ratio=0.2).select(np.arange(N), 30, 3, el2n=values["el2n"])
    np.testing.assert_array_equal(ccs.ids, stratified_sample(el2n, 30, 7, 0.2, 3))
    assert not set(np.argsort(-el2n)[:18]) & set(ccs.ids)
    for scaling in ("minmax", "rank"):
        dealrec = DEALRecSelector(0.3, 9, 0.1, scaling).select(np.arange(N), 30, 3, **needed(DEALRecSelector(), values))
        scores = combine_scores(values["influence"], values["effort"], 0.3, scaling=scaling)
        np.testing.assert_array_equal(dealrec.scores, scores)
        np.testing.assert_array_equal(dealrec.ids, stratified_sample(scores, 30, 9, 0.1, 3))
        assert score_strata(dealrec.scores, 9, 0.1)[dealrec.ids].min() >= 0


def test_without_influence_dealrec_goes_by_effort():
    values = world()
    found = DEALRecSelector(1.0).select(np.arange(N), 30, influence=np.zeros(N), effort=values["effort"])
    np.testing.assert_array_equal(np.argsort(found.scores), np.argsort(values["effort"]))


def test_k_center_covers_as_a_plain_traversal_does():
    points = world()["vectors"].astype(np.float64)
    chosen, scores = KCenterSelector().select(np.arange(N), 12, vectors=points)
    table = np.linalg.norm(points[:, None] - points[None], axis=2)
    plain = [int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmin())]
    while len(plain) < 12:
        plain.append(int(table[plain].min(axis=0).argmax()))
    assert chosen.tolist() == sorted(plain)
    radius = table[plain].min(axis=0)
    np.testing.assert_allclose(np.delete(scores, plain), np.delete(radius, plain))
    for place in range(1, 12):
        assert scores[plain[place]] == pytest.approx(table[plain[:place], plain[place]].min())
    assert scores[plain[0]] == pytest.approx(table[plain[0]].max())
    assert table[chosen][:, chosen][~np.eye(12, dtype=bool)].min() >= radius.max()  # hence at most twice the optimum


def test_k_center_takes_duplicates_last():
    points = np.array([[0.0], [0.0], [5.0], [5.0], [9.0], [9.0]])
    assert KCenterSelector().select(np.arange(6), 3, vectors=points).ids.tolist() == [0, 2, 4]


def test_herding_matches_the_mean_as_a_plain_search_does():
    points = world()["vectors"].astype(np.float64)
    plain = []
    for _ in range(15):
        gap = [
            np.inf if row in plain else np.linalg.norm(points.mean(axis=0) - points[[*plain, row]].mean(axis=0))
            for row in range(N)
        ]
        plain.append(int(np.argmin(gap)))
    chosen = HerdingSelector().select(np.arange(N), 15, vectors=points).ids
    assert chosen.tolist() == sorted(plain)
    random = RandomSelector().select(np.arange(N), 15).ids
    gaps = [np.linalg.norm(points.mean(axis=0) - points[rows].mean(axis=0)) for rows in (chosen, random)]
    assert gaps[0] < 0.2 * gaps[1]


@pytest.mark.parametrize(("width", "offset", "scatter"), [(1, 100, 0.01), (64, 100, 0.03), (768, 20, 0.05)])
def test_herding_of_vectors_that_share_a_large_part_is_that_of_their_differences(width, offset, scatter):
    """In single precision as in double: the choice depends on differences from the mean alone."""
    rng = np.random.default_rng(width)
    points = (offset + scatter * rng.normal(size=(200, width))).astype(np.float32)
    apart = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    chosen, exact = (HerdingSelector().select(np.arange(200), 20, vectors=found).ids for found in (points, apart))
    gaps = [np.linalg.norm(apart[rows].mean(axis=0)) for rows in (chosen, exact)]
    assert gaps[0] == pytest.approx(gaps[1], rel=0.01) and len(np.intersect1d(chosen, exact)) >= 18


def test_d2_numbers():
    """Three rows in a line, k = 1: worked out by hand with weights exp(-1) and exp(-4)."""
    distances, neighbours = np.array([[1.0], [1.0], [2.0]]), np.array([[1], [0], [1]])
    chosen, scores = d2_select(np.array([1.0, 2.0, 3.0]), distances, neighbours, 2, 1.0, 1.0)
    first, fourth = np.exp(-1), np.exp(-4)
    raised = [1 + 2 * first, 2 + first, 3 + 2 * fourth]
    assert chosen.tolist() == [2, 1]
    np.testing.assert_allclose(scores[2], raised[2])
    np.testing.assert_allclose(scores[1], raised[1] - fourth * raised[2])
    np.testing.assert_allclose(scores[0], raised[0] - first * (raised[1] - fourth * raised[2]))


def test_d2_spreads_over_clusters_where_difficulty_alone_does_not():
    rng = np.random.default_rng(0)
    centres = 10 * np.eye(4)
    points = np.concatenate([centre + 0.01 * rng.normal(size=(25, 4)) for centre in centres])
    el2n = np.repeat([1.0, 0.9, 0.8, 0.7], 25) + 0.001 * rng.random(100)
    d2 = D2PruningSelector(n_neighbours=24, gamma_reverse=0.0).select(np.arange(100), 4, vectors=points, el2n=el2n)
    assert sorted(d2.ids // 25) == [0, 1, 2, 3]
    assert set(EL2NSelector().select(np.arange(100), 4, el2n=el2n).ids // 25) == {0}


def test_dsir_prefers_rows_like_the_target_and_scores_are_log_ratios():
    texts = ["space ship space"] * 20 + ["love story love"] * 20
    found = DSIRSelector().select(np.arange(40), 15, texts=texts, target_texts=["space war", "space ship"])
    assert (found.ids < 20).mean() > 0.9
    scores = log_importance(["a b", "b"], ["a a", "b"], n_buckets=2**20, max_ngram=1, smoothing=0.5)
    total = 0.5 * 2**20 + 3
    by_hand = np.log([2.5 / total, 1.5 / total]) - np.log([1.5 / total, 2.5 / total])  # p and q of a and b
    np.testing.assert_allclose(scores, [by_hand.sum(), by_hand[1]], atol=1e-12)


def test_dsir_does_not_depend_on_the_process():
    texts, target = ["Toy Story!", "Babe", "toy soldiers"], ["Toy"]
    code = f"from recbole_llm.coreset.dsir import log_importance as f; print(f({texts}, {target}, 50).tolist())"
    done = fresh_python(code=code, env={"PYTHONHASHSEED": "1"})
    assert done.stdout.strip() == str(log_importance(texts, target, 50).tolist())


def test_gumbel_top_draws_in_proportion_and_zero_weights_last():
    weights = np.log(np.array([1.0, 2, 5, 0, 0]), where=[True] * 3 + [False] * 2, out=np.full(5, -np.inf))
    draws = [gumbel_top(weights, 4, np.random.default_rng(seed)) for seed in range(1500)]
    np.testing.assert_allclose(np.bincount([draw[0] for draw in draws]) / 1500, np.array([1, 2, 5]) / 8, atol=0.04)
    assert all(set(draw[:3]) == {0, 1, 2} for draw in draws)
    assert 0.4 < np.mean([draw[3] == 3 for draw in draws]) < 0.6


@pytest.mark.parametrize(
    "sizes, budget, quotas",
    [([5, 3, 2], 5, [3, 1, 1]), ([1, 1, 1], 2, [1, 1, 0]), ([9, 0, 1], 10, [9, 0, 1]), ([7, 7], 0, [0, 0])],
)
def test_quotas_by_largest_remainder(sizes, budget, quotas):
    assert proportional_quotas(np.array(sizes), budget).tolist() == quotas


def test_tf_dcon_takes_the_most_typical_rows_of_every_cluster():
    values = world()
    selector = TFDConSelector(n_clusters=5)
    chosen, scores = selector.select(np.arange(N), 30, seed=2, **needed(selector, values))
    points = np.concatenate([unit_vectors(values["recommender_vectors"]), unit_vectors(values["llm_vectors"])], axis=1)
    labels, centres = k_means(points, 5, 2)
    np.testing.assert_allclose(scores, -np.linalg.norm(points - centres[labels], axis=1))
    quotas = proportional_quotas(np.bincount(labels), 30)
    for cluster in range(5):
        members = np.flatnonzero(labels == cluster)
        nearest = members[np.argsort(-scores[members], kind="stable")[: quotas[cluster]]]
        assert set(nearest) == set(chosen[labels[chosen] == cluster])


def test_recranker_prefers_active_users_and_fills_up():
    rng = np.random.default_rng(0)
    inputs = {
        "recommender_vectors": rng.normal(size=(200, 3)),
        "history_lengths": np.r_[np.full(100, 1), np.full(100, 50)],
    }
    share = np.mean(
        [(RecRankerSelector().select(np.arange(200), 40, seed, **inputs).ids >= 100).mean() for seed in range(20)]
    )
    assert 0.6 < share < 0.9
    alone = RecRankerSelector().select(np.arange(200), 40, 0, **inputs | {"history_lengths": np.ones(200)})
    assert len(alone.ids) == 40  # nobody has more than one interaction: uniform
    drawn = RecRankerSelector().select(np.arange(200), 40, 0, **inputs).scores
    assert 35 <= np.count_nonzero(drawn) <= 50
    assert set(np.unique(drawn).round(6)) <= {round(c * 0.95 ** max(c - 1, 0), 6) for c in range(6)}
    with refused("history_lengths", "value", "200 rows have a negative value"):
        RecRankerSelector().select(np.arange(200), 40, 0, **inputs | {"history_lengths": -np.ones(200)})


# -------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("k", [1, 5, 200])
def test_nearest_neighbours_by_blocks_equal_brute_force(monkeypatch, k):
    monkeypatch.setattr(vectors_module, "_BLOCK_ELEMENTS", 600)
    points = np.random.default_rng(0).normal(size=(70, 4)) + 100
    distances, neighbours = nearest_neighbours(points, k)
    table = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(table, np.inf)
    order = np.argsort(table, axis=1, kind="stable")[:, : min(k, 69)]
    np.testing.assert_array_equal(neighbours, order)
    np.testing.assert_allclose(distances, np.take_along_axis(table, order, axis=1))


def test_large_tables_are_not_copied_where_the_rows_are_in_order():
    seen = {}

    class Probe(HerdingSelector):
        def _select(self, n_rows, budget, seed, *, vectors):
            seen["vectors"] = vectors
            return np.arange(budget), np.zeros(n_rows)

    table = world()["vectors"]
    Probe().select(np.arange(N), 3, vectors=table)
    assert np.shares_memory(seen["vectors"], table)


def test_the_room_stands_alone():
    code = "import sys, recbole_llm.coreset; print(' '.join(sys.modules))"
    modules = fresh_python(code=code).stdout.split()
    rooms = {f"recbole_llm.{room}" for room in ("data", "model", "trainer", "config", "registry", "llm", "adapter")}
    assert not {"recbole", "ray", "sklearn", "transformers"} & set(modules) and not rooms & set(modules)
    assert set(coreset.__all__) <= set(dir(coreset))


def test_settings_of_all_selectors_are_read_without_torch():
    names = [*(type(selector).__name__ for selector in SELECTORS), "GoracsSettings"]
    code = f"import sys; from recbole_llm.coreset import {', '.join(names)}; print(' '.join(sys.modules))"
    modules = fresh_python(code=code).stdout.split()
    assert not {"torch", "scipy", "sklearn", "ot", "faiss", "pandas"} & set(modules)


def test_seeds_may_be_as_long_as_those_of_stages():
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    labels, centres = k_means(points, 4, seed=2**60 - 1)
    assert np.bincount(labels).shape == (4,) and centres.shape == (4, 3)
