"""Quantisers fitted to vectors: what they must give for any vectors, and that they are the same at every call."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.semantic_ids import CodeTrie, collision_rate
from recbole_llm.semantic_ids.kmeans import residual_kmeans
from recbole_llm.semantic_ids.rqvae import RQVAE, fit_rqvae, temperature_at, train_epoch
from recbole_llm.semantic_ids.settings import CodeSettings
from recbole_llm.semantic_ids.table import Quantiser, code_summary, standardised, unique_codes
from tests.refusals import refused

seeds = st.integers(0, 10_000)


def points(seed: int, n: int, d: int, distinct: int) -> np.ndarray:
    """Vectors of which several may be one."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(distinct, d)).astype(np.float32)[rng.integers(distinct, size=n)]


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.sampled_from([None, 2, 5]))
@settings(max_examples=40)
def test_items_and_codes_name_each_other(seed, n, distinct, levels, n_codes):
    vectors = standardised(points(seed, n, 4, distinct))
    quantiser = Quantiser.fit(vectors, CodeSettings(levels=levels, codes=n_codes), seed)
    codes = unique_codes(quantiser.codes(vectors))
    trie = CodeTrie(codes)
    assert [trie.item(code) for code in codes.tolist()] == list(range(n))
    assert len({tuple(code) for code in codes.tolist()}) == n
    sharing = Counter(map(tuple, codes[:, :-1].tolist()))
    assert codes[:, -1].max() + 1 == max(sharing.values())
    assert codes[:, :-1].max() < quantiser.codebooks.shape[1] == min(n_codes or 64, n)


@given(seeds)
@settings(max_examples=15)
def test_a_level_more_rebuilds_better_and_equal_vectors_share_codes(seed):
    vectors = standardised(points(seed, 60, 5, 40))
    errors = [Quantiser.fit(vectors, CodeSettings(levels=n, codes=4), seed).error(vectors) for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    codes = Quantiser.fit(vectors, CodeSettings(levels=2, codes=4), seed).codes(vectors)
    of_vector: dict[bytes, tuple[int, ...]] = {}
    for vector, code in zip(vectors, codes.tolist(), strict=True):
        assert of_vector.setdefault(vector.tobytes(), tuple(code)) == tuple(code)


@given(seeds)
@settings(max_examples=15)
def test_another_order_of_items_changes_counters_alone(seed):
    vectors = standardised(points(seed, 30, 3, 12))
    quantiser = Quantiser.fit(vectors, CodeSettings(levels=2, codes=3), seed)
    order = np.random.default_rng(seed).permutation(len(vectors))
    codes, turned = (unique_codes(quantiser.codes(own)) for own in (vectors, vectors[order]))
    assert (turned[:, :-1] == codes[order][:, :-1]).all()
    assert sorted(map(tuple, turned.tolist())) == sorted(map(tuple, codes.tolist()))


def test_the_first_level_of_residual_k_means_finds_clusters_that_are_apart():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [10, 0], [0, 10]])
    own = np.repeat([0, 1, 2], 20)
    vectors = (centres[own] + 0.1 * rng.normal(size=(60, 2))).astype(np.float32)
    books = residual_kmeans(vectors, levels=2, n_codes=3, seed=1)
    assert np.abs(np.sort(books[0], axis=0) - np.sort(centres, axis=0)).max() < 0.1
    codes = Quantiser(books).codes(vectors)[:, 0]
    assert len({(one, other) for one, other in zip(codes.tolist(), own.tolist(), strict=True)}) == 3


@pytest.mark.parametrize("assign", ["argmin", "sample"])
def test_an_autoencoder_rebuilds_better_after_training_and_is_the_same_at_every_call(assign):
    vectors = standardised(points(3, 200, 6, 8))
    options = {"width": 4, "levels": 2, "n_codes": 8, "seed": 5, "assign": assign}
    one, other = (fit_rqvae(vectors, epochs=30, **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    data = torch.from_numpy(vectors)
    untrained = RQVAE(6, 4, 2, 8, torch.Generator().manual_seed(5))
    untrained.start(data, 5)
    assert one.reconstruction_error(data) < 0.95 * untrained.reconstruction_error(data)
    assert one.codebooks.dtype == torch.float32


def test_a_codeword_that_nobody_takes_starts_anew():
    data = torch.from_numpy(standardised(points(0, 50, 4, 50)))
    model = RQVAE(4, 3, 2, 6, torch.Generator().manual_seed(0))
    model.start(data, 0)
    with torch.no_grad():
        model.codebooks[0, 2] = 1e6
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_epoch(model, optimizer, data, torch.Generator().manual_seed(1), revive=False)
    assert model.codebooks[0, 2].abs().max() > 1e5
    train_epoch(model, optimizer, data, torch.Generator().manual_seed(1))
    latent, word = model.encoder(data).detach(), model.codebooks.detach()[0, 2]
    assert float((latent - word).norm(dim=1).min()) < 1e-6  # what the first level is given
    assert 2 in model.codes(data)[:, 0].tolist()


def test_the_temperature_falls_to_its_end_or_stays_below():
    steps = [temperature_at(epoch, 5, 1.0) for epoch in range(5)]
    assert steps[0] == 1.0 and steps[-1] == pytest.approx(0.05) and steps == sorted(steps, reverse=True)
    assert [temperature_at(epoch, 3, 0.01) for epoch in range(3)] == [0.01] * 3


@given(seeds)
@settings(max_examples=20)
def test_what_is_told_of_codes_by_counting(seed):
    rng = np.random.default_rng(seed)
    codes = unique_codes(rng.integers(3, size=(int(rng.integers(1, 20)), 2)))
    found = code_summary(codes, n_codes=4)
    assert found["collision_rate"] == pytest.approx(collision_rate(codes[:, :-1]))
    for level, column in enumerate(codes[:, :-1].T):
        shares = [count / len(codes) for count in Counter(column.tolist()).values()]
        assert found["used"][level] == len(shares)
        assert found["perplexity"][level] == pytest.approx(np.prod([share**-share for share in shares]))


def test_tasks_without_the_one_that_ranks_are_refused():
    for tasks in ([], ["item2text"], ["next", "next"]):
        with refused("sid_tasks", "value"):
            CodeSettings(tasks=tasks)
