"""GORACS, Moderate, FDMat and QDIT as selectors: the promises all make, then what each one is for."""

import itertools
import logging

import numpy as np
import pytest

from recbole_llm.coreset import (
    FDMatSelector,
    GoracsSelector,
    ModerateSelector,
    QDITSelector,
    RandomSelector,
    goracs_select,
    proxy_objective,
)
from recbole_llm.coreset.qdit import qdit_select
from recbole_llm.coreset.vectors import unit_vectors
from tests.refusals import refused

N = 60
SELECTORS = [GoracsSelector(max_exchanges=3), ModerateSelector(), FDMatSelector(40, 2), QDITSelector()]


def world(n=N, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "vectors": rng.normal(size=(n, 4)),
        "embeddings": rng.normal(size=(n, 4)).astype(np.float32),
        "valid_embeddings": rng.normal(size=(17, 4)).astype(np.float32),
        "gradient_norms": rng.uniform(0.3, 1, n),
        "quality": rng.normal(size=n),
        "labels": np.arange(n) % 2,
        "valid_labels": np.arange(17) % 2,
    }


def needed(selector, values):
    return {need.name: values[need.name] for need in selector.needs}


@pytest.fixture(params=SELECTORS, ids=lambda selector: selector.name)
def selector(request):
    return request.param


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("budget", [0, 1, 17, N - 1, N])
def test_as_many_different_ids_as_asked_for(selector, budget, with_labels):
    inputs = needed(selector, world())
    if not with_labels:
        inputs = {name: values for name, values in inputs.items() if "labels" not in name}
    ids = np.arange(N) * 3 + 5
    chosen, scores = selector.select(ids, budget, seed=1, **inputs)
    assert len(chosen) == budget and chosen.tolist() == sorted(set(chosen.tolist())) and np.isin(chosen, ids).all()
    assert scores.shape == (N,) and np.isfinite(scores).all()
    order = np.random.default_rng(0).permutation(N)
    per_row = {need.name for need in selector.needs if need.per_row}
    moved = {name: values[order] if name in per_row else values for name, values in inputs.items()}
    again, moved_scores = selector.select(ids[order], budget, seed=1, **moved)
    np.testing.assert_array_equal(again, chosen)
    np.testing.assert_array_equal(moved_scores, scores[order])


def test_settings_are_read_under_the_name_of_the_selector(selector):
    keys = {f"{selector.name}_{field}": value for field, value in selector.facts().items() if field != "coreset"}
    assert type(selector).from_settings(keys).facts() == selector.facts()
    for key, value in keys.items():
        with refused(key, "value"):
            type(selector).from_settings({key: "log" if isinstance(value, str) else -1})


def test_bad_input_is_one_line(selector, caplog):
    inputs = needed(selector, world())
    with refused(selector.needs[0].name, "conflict", "89 entries|59 entries"):
        selector.select(np.arange(N), 5, **inputs | {selector.needs[0].name: inputs[selector.needs[0].name][:-1]})
    with refused(selector.needs[0].name, "missing", f"coreset {selector.name} needs {selector.needs[0].name}"):
        selector.select(np.arange(N), 5, **inputs | {selector.needs[0].name: None})
    with caplog.at_level(logging.WARNING):
        assert len(selector.select(np.arange(N), N + 1, **inputs).ids) == N
    assert "exceeds the 60 rows" in caplog.text


def test_goracs_selector_is_goracs_select():
    values = world()
    selector = GoracsSelector(gradient_weight=0.4, max_exchanges=5, n_candidates=7)
    inputs = {name: values[name] for name in ("embeddings", "valid_embeddings", "gradient_norms")}
    arguments = (values["embeddings"], values["valid_embeddings"], values["gradient_norms"], 9, 0.4, 5, 7)
    expected, info = goracs_select(*arguments, return_info=True)
    chosen, scores = selector.select(np.arange(N), 9, **inputs)
    np.testing.assert_array_equal(chosen, expected)
    np.testing.assert_array_equal(scores, info.scores)
    labels = {name: values[name] for name in ("labels", "valid_labels")}
    expected = goracs_select(*arguments, train_labels=labels["labels"], valid_labels=labels["valid_labels"])
    np.testing.assert_array_equal(selector.select(np.arange(N), 9, **inputs, **labels).ids, expected)
    with refused("labels", "missing", "or neither"):
        selector.select(np.arange(N), 9, **inputs, labels=labels["labels"])
    with refused("valid_labels", "conflict", "16 entries for 17 rows"):
        selector.select(np.arange(N), 9, **inputs, labels=labels["labels"], valid_labels=labels["valid_labels"][:-1])
    with refused("gradient_norms", "missing", "needs gradient_norms"):
        selector.select(np.arange(N), 9, **inputs | {"gradient_norms": None})
    without = GoracsSelector(gradient_weight=0.0).select(np.arange(N), 9, **inputs | {"gradient_norms": None})
    assert len(without.ids) == 9


def test_moderate_takes_what_is_at_the_median_distance():
    radii = np.arange(1.0, 22.0)
    angles = np.linspace(0, 2 * np.pi, 22)[:-1]
    opposite = np.r_[np.c_[np.cos(angles), np.sin(angles)], -np.c_[np.cos(angles), np.sin(angles)]]
    points = opposite * np.r_[radii, radii][:, None]  # around 0, two at every distance
    chosen, scores = ModerateSelector().select(np.arange(42), 6, vectors=points)
    assert chosen.tolist() == [9, 10, 11, 30, 31, 32]
    np.testing.assert_allclose(scores, -np.abs(np.r_[radii, radii] - 11), atol=1e-9)
    labels = np.r_[np.zeros(21), np.ones(21)].astype(int)
    of_class, _ = ModerateSelector().select(np.arange(42), 6, vectors=points + 50 * labels[:, None], labels=labels)
    assert np.bincount(labels[of_class]).tolist() == [3, 3]


def test_fdmat_lies_where_all_rows_lie():
    vectors = world(seed=3)["vectors"]
    table = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    found = FDMatSelector(N, 20).select(np.arange(N), 8, vectors=vectors).ids
    random = [RandomSelector().select(np.arange(N), 8, seed).ids for seed in range(20)]
    values = [proxy_objective(table, np.zeros(N), rows, 0.0) for rows in (found, *random)]
    assert values[0] < min(values[1:])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_qdit_is_a_plain_greedy_search(weight):
    values = world(25)
    points = unit_vectors(values["vectors"])
    similarity = (1 + points @ points.T) / 2
    quality = (values["quality"] - values["quality"].min()) / np.ptp(values["quality"])

    def total(rows):
        return (1 - weight) * similarity[rows].max(axis=0).sum() + weight * quality[rows].sum() if rows else 0.0

    plain = []
    for _ in range(6):
        plain.append(max((row for row in range(25) if row not in plain), key=lambda row: total([*plain, row])))
    inputs = {"vectors": values["vectors"], "quality": values["quality"]}
    chosen, scores = QDITSelector(weight).select(np.arange(25), 6, **inputs)
    assert chosen.tolist() == sorted(plain)
    gains = [total(plain[: place + 1]) - total(plain[:place]) for place in range(6)]
    np.testing.assert_allclose(scores[plain], gains, atol=1e-9)
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(gains))
    order, _ = qdit_select(points, points, quality, 6, weight)
    assert order.tolist() == plain
