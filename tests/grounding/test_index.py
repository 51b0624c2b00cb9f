"""Grounding equals brute force on direct distances, ties included, whatever finds the candidates."""

import logging
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recbole_llm.grounding import ItemIndex
from recbole_llm.grounding import distances as distances_module
from recbole_llm.grounding.distances import Points
from recbole_llm.grounding.engines import TorchEngine
from tests.refusals import refused

ROWS = np.array([(0, 0), (3, 4), (0, 5), (5, 0), (0, 0), (-3, 4), (6, 8), (0, 5)], dtype=np.float32)
RANKABLE = np.isin(np.arange(8), [1, 2, 3, 5, 6])
REPRESENTATIVE = np.array([0, 1, 2, 3, 4, 5, 6, 2])
TARGETS = np.array([1, 2, 3, 5, 6, 7])
ORACLE = [  # query, order, ranks of TARGETS
    ((0, 0), [1, 2, 3, 5, 6], [0, 1, 2, 3, 4, 1]),
    ((0, 4), [2, 1, 5, 3, 6], [1, 0, 3, 2, 4, 0]),
    ((5, 1), [3, 1, 2, 6, 5], [1, 2, 0, 4, 3, 2]),
    ((100, 100), [6, 1, 2, 3, 5], [1, 2, 3, 4, 0, 2]),
]


@pytest.fixture(params=["faiss", "torch"])
def engine(request, monkeypatch):
    """Both ways to find candidates."""
    if request.param == "torch":
        monkeypatch.setitem(sys.modules, "faiss", None)
    else:
        pytest.importorskip("faiss")
    return request.param


def brute_force(embeddings, queries, mask):
    """Direct float64 distances ``[queries, items]``, +inf outside the mask."""
    table = np.linalg.norm(embeddings[None].astype(np.float64) - queries[:, None].astype(np.float64), axis=-1)
    return np.where(mask, table, np.inf)


def brute_ranks(distances, targets):
    own = distances[np.arange(len(targets)), targets][:, None]
    ids = np.arange(distances.shape[1])
    return ((distances < own) | ((distances == own) & (ids < targets[:, None]))).sum(axis=1)


@pytest.mark.parametrize("query, order, ranks", ORACLE)
@pytest.mark.parametrize("rankable", [RANKABLE, None])
def test_numeric_example(engine, query, order, ranks, rankable):
    index = ItemIndex(ROWS, rankable, REPRESENTATIVE)
    queries = np.repeat(np.array([query], dtype=np.float32), len(TARGETS), axis=0)
    assert index.rank_of(queries, TARGETS).tolist() == ranks
    distances, ids = index.search(queries[:1], 99)
    assert ids.tolist() == [order]
    assert distances.tolist() == brute_force(ROWS, queries[:1], RANKABLE)[:, order].tolist()


def test_numeric_distances():
    index = ItemIndex(ROWS, RANKABLE, REPRESENTATIVE)
    query = np.array([[0.0, 4.0]])
    inf = np.inf
    np.testing.assert_allclose(index.distances(query), [[inf, 3, 1, 6.4031242374, inf, 3, 7.2111025509, inf]])
    np.testing.assert_allclose(index.distances(query, expand=True)[0, [2, 7]], [1, 1])


@st.composite
def tied_catalogues(draw):
    """Few distinct coordinates in few dimensions: many exact ties, duplicate rows, zero rows, exact matches."""
    d = draw(st.integers(1, 3))
    n = draw(st.integers(2, 30))
    grid = st.integers(-2, 2)
    embeddings = draw(hnp.arrays(np.float32, (n, d), elements=grid))
    queries = draw(hnp.arrays(np.float32, (draw(st.integers(1, 5)), d), elements=grid))
    rankable = draw(hnp.arrays(bool, n))
    scale = draw(st.sampled_from([1.0, 2.0**-70, 2.0**70, 1 / 3]))
    return embeddings * np.float32(scale), queries * np.float32(scale), rankable


@settings(max_examples=100)
@given(tied_catalogues(), st.integers(1, 40), st.booleans())
def test_equals_brute_force_with_ties(case, k, use_faiss):
    embeddings, queries, rankable = case
    mask = rankable & embeddings.any(axis=1)
    if not mask.any():
        with refused("", "data", "no item can be ranked"):
            ItemIndex(embeddings, rankable)
        return
    index = ItemIndex(embeddings, rankable)
    index._engine = index._engine if use_faiss else TorchEngine(index._points)
    expected = brute_force(embeddings, queries, mask)
    for target in np.flatnonzero(mask):
        targets = np.full(len(queries), target)
        np.testing.assert_array_equal(index.rank_of(queries, targets), brute_ranks(expected, targets))
    order = np.argsort(expected, axis=1, kind="stable")[:, : min(k, mask.sum())]
    distances, ids = index.search(queries, k)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(distances, np.take_along_axis(expected, order, axis=1))
    full = index.distances(queries)
    np.testing.assert_array_equal(np.argsort(full, axis=1, kind="stable"), np.argsort(expected, axis=1, kind="stable"))
    np.testing.assert_allclose(full, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width, shift", [(5, 0.0), (5, 1000.0), (600, 100.0), (1100, 0.0)])
def test_equals_brute_force_on_real_values(engine, monkeypatch, dtype, width, shift):
    """Random rows, some twice, some one rounding step apart, queries on rows: where the matrix form alone is wrong."""
    monkeypatch.setattr(distances_module, "_BLOCK_ELEMENTS", 2000)  # several blocks, and a last one that is smaller
    monkeypatch.setattr(distances_module, "_BLOCK_POINTS", 64)
    monkeypatch.setattr(distances_module, "_GATHER_ELEMENTS", 7000)
    rng = np.random.default_rng(3)
    embeddings = (rng.normal(size=(150, width)) + shift).astype(dtype)
    embeddings[100:120] = embeddings[40:60]
    embeddings[120:140] = np.nextafter(embeddings[40:60], dtype(np.inf))
    embeddings[[0, 9]] = 0
    queries = np.concatenate([rng.normal(size=(20, width)) + shift, embeddings[40:60]]).astype(dtype)
    mask = embeddings.any(axis=1)
    index, expected = ItemIndex(embeddings), brute_force(embeddings, queries, mask)
    for targets in (rng.integers(1, 9, 40), np.repeat([[50], [110]], 20).ravel(), np.r_[40:60, 120:140]):
        np.testing.assert_array_equal(index.rank_of(queries, targets), brute_ranks(expected, targets))
    order = np.argsort(expected, axis=1, kind="stable")
    for k in (1, 7, 148):
        distances, ids = index.search(queries, k)
        np.testing.assert_array_equal(ids, order[:, :k])
        np.testing.assert_array_equal(distances, np.take_along_axis(expected, order[:, :k], axis=1))
    np.testing.assert_array_equal(np.argsort(index.distances(queries), axis=1, kind="stable"), order)
    assert (index.distances(queries)[20:, 40:60].diagonal() == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_exact_where_single_precision_under_or_overflows(engine, scale):
    rng = np.random.default_rng(0)
    embeddings = (rng.normal(size=(50, 4)) * scale).astype(np.float32)
    queries = (rng.normal(size=(9, 4)) * scale).astype(np.float32)
    index = ItemIndex(embeddings)
    expected = brute_force(embeddings, queries, np.arange(50) > 0)
    targets = rng.integers(1, 50, 9)
    np.testing.assert_array_equal(index.rank_of(queries, targets), brute_ranks(expected, targets))
    np.testing.assert_array_equal(index.search(queries, 5)[1], np.argsort(expected, axis=1)[:, :5])


def test_most_comparisons_are_settled_without_direct_distances(monkeypatch):
    """Computing everything directly would be right as well, but slow."""
    computed = []
    direct = Points.direct
    monkeypatch.setattr(Points, "direct", lambda *args: computed.append(len(args[-1])) or direct(*args))
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(50, 64)).astype(np.float32)
    index = ItemIndex(rng.normal(size=(2000, 64)).astype(np.float32))
    index.rank_of(queries, rng.integers(1, 2000, 50))
    assert sum(computed) < 0.01 * 50 * 2000


def test_invariances():
    rng = np.random.default_rng(1)
    embeddings = rng.integers(-4, 5, size=(60, 3)).astype(np.float32)
    queries = rng.integers(-4, 5, size=(8, 3)).astype(np.float32)
    mask = np.arange(60) > 0
    targets = rng.integers(1, 60, 8)
    embeddings[(embeddings == 0).all(axis=1)] = 1
    ranks = ItemIndex(embeddings, mask).rank_of(queries, targets)
    shifted = ItemIndex(embeddings + 1000, mask).rank_of(queries + 1000, targets)
    np.testing.assert_array_equal(shifted, ranks)
    np.testing.assert_array_equal(ItemIndex(embeddings, mask).rank_of(queries[::-1], targets[::-1]), ranks[::-1])

    distinct = rng.normal(size=(60, 3)).astype(np.float32)  # no ties: ranks follow a permutation of the items
    order = np.r_[0, 1 + rng.permutation(59)]
    moved = ItemIndex(distinct[order]).rank_of(queries, np.argsort(order)[targets])
    np.testing.assert_array_equal(moved, ItemIndex(distinct).rank_of(queries, targets))


def test_padding_zero_rows_and_duplicates_never_rank_by_default():
    index = ItemIndex(ROWS + np.array([[9, 9]] + 7 * [[0, 0]], dtype=np.float32), representative=REPRESENTATIVE)
    np.testing.assert_array_equal(np.flatnonzero(index.rankable), [1, 2, 3, 5, 6])
    assert len(index) == 5
    for target in (0, 4):
        with pytest.raises(ValueError, match=f"target {target} cannot be ranked"):
            index.rank_of(np.zeros((1, 2)), [target])


def test_an_explicitly_rankable_duplicate_stands_where_its_representative_stands():
    embeddings = ROWS.copy()
    embeddings[7] = 0  # only the representative's row counts
    index = ItemIndex(embeddings, np.arange(8) > 0, REPRESENTATIVE)
    assert index.search(np.array([[0.0, 4.0]]), 3)[1].tolist() == [[2, 7, 1]]
    assert index.rank_of(np.array([[0.0, 4.0]]), [7]).tolist() == [0]
    assert index.rank_of(np.array([[0.0, 4.0]]), [1]).tolist() == [2]


def test_tensors_give_tensors_and_half_precision_is_widened():
    index = ItemIndex(torch.tensor(ROWS).bfloat16(), torch.tensor(RANKABLE), torch.tensor(REPRESENTATIVE))
    queries = torch.tensor([[0.0, 4.0], [5.0, 1.0]], requires_grad=True)
    distances, ids = index.search(queries, 2)
    assert (distances.dtype, ids.dtype) == (torch.float64, torch.int64)
    assert ids.tolist() == [[2, 1], [3, 1]]
    assert index.rank_of(queries.bfloat16(), torch.tensor([7, 6])).tolist() == [0, 3]
    assert isinstance(index.distances(queries), torch.Tensor)
    assert isinstance(index.rank_of(queries.detach().numpy(), torch.tensor([7, 6])), np.ndarray)


def test_no_query_and_one_item():
    index = ItemIndex(ROWS[:2])
    assert index.rank_of(np.zeros((0, 2)), np.zeros(0, dtype=int)).shape == (0,)
    assert index.search(np.zeros((0, 2)), 3)[1].shape == (0, 1)
    assert index.distances(np.zeros((0, 2))).shape == (0, 2)
    assert index.rank_of(np.array([[7.0, 7.0]]), [1]).tolist() == [0]


@pytest.mark.parametrize(
    "factory, parameters", [("IVF4,Flat", ""), ("IVF4,Flat", "nprobe=4"), ("HNSW8", "efSearch=32")]
)
def test_approximate_indexes_score_exactly_and_rank_exactly(caplog, factory, parameters):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(400, 6)).astype(np.float32)
    embeddings[7] = 0
    queries = rng.normal(size=(30, 6)).astype(np.float32)
    expected = brute_force(embeddings, queries, embeddings.any(axis=1) & (np.arange(400) > 0))
    with caplog.at_level(logging.INFO):
        index = ItemIndex(embeddings, factory=factory, search_parameters=parameters)
    assert not index.exact and "approximate" in caplog.text
    for k in (10, 399):  # more than a cell of the index holds: what is missing is found exactly
        distances, ids = index.search(queries, k)
        np.testing.assert_array_equal(distances, np.take_along_axis(expected, ids, axis=1))
        assert (np.diff(distances, axis=1) >= 0).all() and all(len(set(row)) == min(k, 398) for row in ids.tolist())
    targets = rng.integers(8, 400, 30)
    np.testing.assert_array_equal(index.rank_of(queries, targets), brute_ranks(expected, targets))
    found = index.search(queries, 10)[1]
    best = np.argsort(expected, axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)])
    assert recall > (0.9 if parameters else 0.3)
    if parameters == "nprobe=4":  # every cell visited
        np.testing.assert_array_equal(found, best)


@pytest.mark.parametrize("factory", ["Fleet", "IVF1000,Flat", ""])
def test_a_factory_string_that_faiss_refuses_is_the_users_mistake(factory):
    pytest.importorskip("faiss")
    with refused("faiss_index", "value", "faiss refuses the index") as caught:
        ItemIndex(np.random.default_rng(0).normal(size=(50, 4)), factory=factory)
    assert "\n" not in str(caught.value)
    with refused("faiss_index", "value", "nprobes=3"):
        ItemIndex(np.ones((50, 4)), factory="IVF1,Flat", search_parameters="nprobes=3")


def test_without_faiss_the_log_says_so_once(caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    index = ItemIndex(ROWS, factory="IVF4,Flat")
    assert index.exact
    for _ in range(3):
        index.search(np.zeros((1, 2)), 1)
    assert caplog.text.count("exact torch fallback") == 1


def test_wrong_input_is_named():
    broken = ROWS.copy()
    broken[5, 1] = np.nan
    with refused("", "numeric", "item 5 holds NaN"):
        ItemIndex(broken)
    with refused("", "data"):
        ItemIndex(np.zeros((3, 2)))
    for arguments in ((ROWS[0],), (ROWS, RANKABLE[:3]), (ROWS, RANKABLE.astype(int)), (ROWS, None, np.arange(3))):
        with pytest.raises(ValueError, match="must be"):
            ItemIndex(*arguments)
    for representative in ([0, 1, 2, 3, 4, 5, 6, 8], [0, 2, 3, 3, 4, 5, 6, 7]):
        with pytest.raises(ValueError, match="represents itself"):
            ItemIndex(ROWS, None, representative)
    index = ItemIndex(ROWS)
    for target in (-1, 8):
        with pytest.raises(ValueError, match=f"target {target} is no item"):
            index.rank_of(np.zeros((1, 2)), [target])
    with pytest.raises(ValueError, match="one per query"):
        index.rank_of(np.zeros((2, 2)), [1])
    with pytest.raises(ValueError, match=r"queries must be \[queries, 2\]"):
        index.search(np.zeros((1, 3)), 1)
    with pytest.raises(ValueError, match="query 1 holds NaN"):
        index.distances(np.array([[0, 0], [0, np.inf]]))
    with pytest.raises(ValueError, match="k must be at least 1"):
        index.search(np.zeros((1, 2)), 0)
