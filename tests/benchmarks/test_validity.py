"""The correlation of the validity benchmarks is Spearman's, and their subsets are what they are called."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from benchmarks import validity, validity_goracs, validity_influence
from benchmarks.validity import rank_correlation
from benchmarks.validity_goracs import KINDS, Measured


@pytest.mark.parametrize("ties", [False, True])
def test_the_correlation_is_spearmans_and_lies_in_its_interval(ties, monkeypatch):
    monkeypatch.setattr(validity, "_RESAMPLES", 1000)
    generator = np.random.default_rng(0)
    first = generator.normal(size=40)
    second = first + generator.normal(size=40)
    if ties:
        first, second = first.round(), second.round()
    found = rank_correlation(first.tolist(), second)
    assert found["rho"] == pytest.approx(spearmanr(first, second)[0], abs=1e-12) and found["n"] == 40
    assert -1 <= found["low"] < found["rho"] < found["high"] <= 1
    opposite = rank_correlation(-first, second)
    assert opposite["rho"] == pytest.approx(-found["rho"]) and opposite["low"] == pytest.approx(-found["high"])


def world_of_vectors(n_rows=120, n_valid=40):
    generator = np.random.default_rng(1)
    vectors, valid = generator.normal(size=(n_rows, 4)), generator.normal(size=(n_valid, 4)) + 1
    distances = cdist(vectors, valid)
    norms = generator.uniform(0.2, 1.0, n_rows)
    return Measured(vectors, valid, distances / distances.max(), norms / norms.max(), np.arange(n_rows) % 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", [0, 1, 5, 7, 11])
def test_subsets_have_the_same_size_and_repeat_by_their_seed(kind, variant):
    found = world_of_vectors()
    (first, detail), (again, _) = (KINDS[kind](found, 20, variant, np.random.default_rng(variant)) for _ in range(2))
    assert len(np.unique(first)) == len(first) == 20
    np.testing.assert_array_equal(first, again)
    if kind == "group":
        share = max(np.bincount(found.group[first])) / 20
        assert share >= (0.5, 0.75, 1.0)[variant // 4 % 3] and detail.startswith(f"{(50, 75, 100)[variant // 4 % 3]}%")
    if kind == "near":
        nearest = found.distances.min(axis=1)
        assert (nearest[first].mean() < nearest.mean()) == (variant % 2 == 0)


def test_goracs_subsets_have_lower_objectives_than_random_ones():
    found = world_of_vectors()
    means = {}
    for kind in ("random", "goracs"):
        chosen = [KINDS[kind](found, 20, variant, np.random.default_rng(variant))[0] for variant in range(6)]
        means[kind] = np.mean([validity_goracs.point(found, own, 0.1)["objective"] for own in chosen])
    assert means["goracs"] < means["random"]


@pytest.mark.parametrize("benchmark", [validity_goracs, validity_influence])
def test_what_was_not_run_says_so(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(validity, "RESULTS", tmp_path)
    assert list(benchmark.render_validity()) == ["Not run."]
