"""Ranks over all items equal those of the dense table, whatever finds the nearest; approximate ones log a recall."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recbole_llm.grounding import ItemIndex, Ranking, rank_scores
from recbole_llm.grounding import engines as engines_module
from recbole_llm.grounding.distances import Points
from recbole_llm.grounding.engines import KnnEngine, TorchEngine

faiss = pytest.importorskip("faiss")


def assert_equal(found: Ranking, expected: Ranking) -> None:
    """Equal ranks and items; scores up to the rounding of the dense table, which is direct only where it decides."""
    np.testing.assert_array_equal(found.ranks, expected.ranks)
    np.testing.assert_array_equal(found.top_items, expected.top_items)
    np.testing.assert_allclose(found.top_scores, expected.top_scores, rtol=1e-9)


@st.composite
def catalogues(draw):
    """Few distinct coordinates, so ties; shared titles, untitled items, zero rows; queries that are items."""
    d, n = draw(st.integers(1, 3)), draw(st.integers(2, 25))
    grid = st.integers(-2, 2)
    embeddings = draw(hnp.arrays(np.float32, (n, d), elements=grid))
    titles = draw(hnp.arrays(np.int64, n, elements=st.integers(-1, max(1, n // 2))))  # -1: no title
    titles[0] = -1
    lowest = {title: item for item, title in reversed(list(enumerate(titles.tolist())))}
    representative = np.array([lowest[title] if title >= 0 else 0 for title in titles.tolist()])
    rankable = (titles >= 0) & (representative == np.arange(n))
    queries = draw(hnp.arrays(np.float32, (draw(st.integers(1, 4)), d), elements=grid))
    scale = np.float32(draw(st.sampled_from([1.0, 2.0**-70, 1 / 3])))
    return embeddings * scale, queries * scale, rankable, representative


@settings(max_examples=100)
@given(catalogues(), st.integers(1, 30), st.sampled_from([KnnEngine, TorchEngine]), st.data())
def test_ranks_are_those_of_the_dense_table(case, k, engine, data):
    embeddings, queries, rankable, representative = case
    if not (rankable & embeddings.any(axis=1)).any():
        return
    index = ItemIndex(embeddings, rankable, representative)
    index._engine = engine(index._points)
    targets = data.draw(hnp.arrays(np.int64, len(queries), elements=st.integers(0, len(embeddings) - 1)))
    assert_equal(index.rank(queries, targets, k), rank_scores(-index.distances(queries, expand=True), targets, k))
    without = index.rank(queries, None, k)
    assert_equal(without, rank_scores(-index.distances(queries, expand=True), None, k))
    assert (without.ranks == -1).all()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_large_catalogues_are_ranked_block_by_block_as_by_the_dense_table(monkeypatch, kept, shared):
    if not kept:  # as if the catalogue were too large for a second copy
        monkeypatch.setattr(engines_module, "_KEPT_ELEMENTS", 0)
        monkeypatch.setattr(engines_module, "_BLOCK_ELEMENTS", 16 * 100)
    rng = np.random.default_rng(0)
    n = 1500
    embeddings = rng.normal(size=(n, 16)).astype(np.float32)
    title = np.where(rng.random(n) < shared, rng.integers(0, n // 3, n), np.arange(n))
    title[0] = 0
    representative = np.array([np.flatnonzero(title == own)[0] for own in title])
    rankable = (representative == np.arange(n)) & (np.arange(n) > 0)
    queries = np.concatenate([rng.normal(size=(40, 16)), embeddings[representative[100:110]]]).astype(np.float32)
    index = ItemIndex(embeddings, rankable, representative)
    assert index._points.kept == kept
    targets = rng.integers(0, n, len(queries))
    for k in (1, 20, n + 5):
        table = -index.distances(queries, expand=True)
        assert_equal(index.rank(queries, targets, k), rank_scores(table, targets, k))
    assert (index.rank(queries, targets, 3).top_scores[40:, 0] == 0).all()


def test_neighbours_that_rounding_may_have_hidden_are_looked_for_again(monkeypatch):
    """Distances that differ by less than single precision tells, all in one crowd far larger than what is retrieved."""
    rng = np.random.default_rng(0)
    embeddings = (1 + 1e-6 * rng.normal(size=(600, 8))).astype(np.float32)
    queries = (1 + rng.normal(size=(20, 8))).astype(np.float32)
    index, targets = ItemIndex(embeddings), rng.integers(1, 600, 20)
    asked = []
    within = Points.nearest_within
    monkeypatch.setattr(Points, "nearest_within", lambda *of: asked.append(len(of[1])) or within(*of))
    expected = rank_scores(-index.distances(queries, expand=True), targets, 30)
    assert_equal(index.rank(queries, targets, 30), expected)
    assert asked == [20]


def test_an_item_may_have_a_lower_id_than_the_one_that_represents_it():
    embeddings = np.array([[0, 0], [9, 9], [1, 0], [0, 1], [5, 5]], dtype=np.float32)
    rankable, representative = np.array([False, False, True, True, True]), np.array([0, 3, 2, 3, 4])
    index = ItemIndex(embeddings, rankable, representative)
    found = index.rank(np.array([[0.0, 0.0]]), [3], 2)  # items 1 and 3 stand at (0, 1), as far as item 2 at (1, 0)
    assert found.top_items.tolist() == [[1, 2]] and found.ranks.tolist() == [2]


def test_targets_that_are_in_no_ranking_have_no_rank():
    embeddings = np.array([[0, 0], [1, 0], [0, 0], [2, 0], [9, 9]], dtype=np.float32)
    index = ItemIndex(embeddings, np.array([False, True, True, True, False]))
    queries = np.zeros((5, 2))
    assert index.rank(queries, np.arange(5), 9).ranks.tolist() == [-1, 0, -1, 1, -1]
    assert index.rank(queries[:0], np.arange(0), 9).top_items.shape == (0, 9)
    with pytest.raises(ValueError, match=r"targets must be int \[5\]"):
        index.rank(queries, [1, 2], 9)


@pytest.fixture(scope="module")
def random_catalogue() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """20,000 random items, and 200 queries with their targets."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(20_000, 24)).astype(np.float32)
    return embeddings, rng.normal(size=(200, 24)).astype(np.float32), rng.integers(1, 20_000, 200)


def test_hnsw_changes_the_ranking_of_a_large_catalogue_and_the_log_says_how_much(random_catalogue, caplog):
    embeddings, queries, targets = random_catalogue
    exact = ItemIndex(embeddings).rank(queries, targets, 10)
    assert "recall" not in caplog.text
    targets = np.where(np.arange(200) < 150, exact.top_items[:, 5], targets)  # most have a rank among the first ten
    exact = ItemIndex(embeddings).rank(queries, targets, 10)
    with caplog.at_level(logging.INFO):
        index = ItemIndex(embeddings, factory="HNSW8")
        assert index.recall is None
        found = index.rank(queries, targets, 10)
        index.rank(queries, targets, 10)
    assert (found.top_items != exact.top_items).any() and (found.ranks != exact.ranks).any()
    # A listed target stands where the list has it; what the list lacks can only have stood before it.
    deep = index.rank(queries, None, 100).top_items  # so deep that ranks are known
    for row, target in enumerate(targets):
        listed = np.flatnonzero(deep[row] == target)
        assert found.ranks[row] == (listed[0] if len(listed) else -1)
    np.testing.assert_array_equal(deep[:, :10], found.top_items)
    there = found.ranks >= 0
    assert there.any() and (found.ranks[there] <= exact.ranks[there]).all()
    sample = np.unique(np.linspace(0, 199, 100).astype(int))
    share = np.mean([np.isin(exact.top_items[row], found.top_items[row]).mean() for row in sample])
    assert index.recall == pytest.approx(share) and 0.3 < share < 1
    stated = re.findall(
        r"'HNSW8' finds ([\d.]+) % of the exact top 10 \(recall, measured on 100 queries\)", caplog.text
    )
    assert stated == [f"{100 * share:.1f}"]


def test_an_approximate_index_that_looks_everywhere_ranks_as_the_exact_one(random_catalogue):
    embeddings, queries, targets = random_catalogue
    embeddings, targets = embeddings[:3000], targets % 2999 + 1
    index = ItemIndex(embeddings, factory="IVF8,Flat", search_parameters="nprobe=8")
    exact = ItemIndex(embeddings).rank(queries, targets, 50)
    found = index.rank(queries, targets, 50)
    np.testing.assert_array_equal(found.top_items, exact.top_items)
    np.testing.assert_array_equal(found.ranks, np.where(exact.ranks < 100, exact.ranks, -1))
    assert index.recall == 1


def test_an_index_learns_from_items_at_even_distances(monkeypatch):
    monkeypatch.setattr(engines_module, "_TRAINING_ROWS", 150)
    monkeypatch.setattr(engines_module, "_BLOCK_ELEMENTS", 5 * 70)
    embeddings = np.random.default_rng(0).normal(size=(401, 5)).astype(np.float32)
    engine = ItemIndex(embeddings, factory="IVF2,Flat")._engine
    expected = (embeddings[1:] - embeddings[1:].mean(axis=0, dtype=np.float64).astype(np.float32))[::3]
    np.testing.assert_array_equal(engine._training_rows(), expected)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8"])
def test_on_a_cuda_device_faiss_searches_on_the_gpu_where_it_can(monkeypatch, caplog, factory):
    """There is no GPU here: what would move an index there is replaced, the order of the calls is what is tested."""
    moved = []

    def move(resources: object, number: int, index: object) -> object:
        if "HNSW" in type(index).__name__:
            raise RuntimeError("not implemented on GPU")
        assert index.ntotal == 0  # filled there, not copied
        moved.append(number)
        return index

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    rng = np.random.default_rng(0)
    embeddings, queries = rng.normal(size=(2, 400, 6)).astype(np.float32)
    index = ItemIndex(embeddings, factory=factory, device="cuda:1")
    targets = rng.integers(1, 400, 400)
    found = index.rank(queries, targets, 5)
    assert moved == ([] if factory == "HNSW8" else [1])
    assert ("faiss_index=HNSW8 cannot run on a GPU" in caplog.text) == (factory == "HNSW8")
    if factory == "Flat":
        assert_equal(found, ItemIndex(embeddings).rank(queries, targets, 5))
        assert index.exact and isinstance(ItemIndex(embeddings, device="cpu")._engine, KnnEngine)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    assert isinstance(ItemIndex(embeddings, device="cuda")._engine, KnnEngine)
