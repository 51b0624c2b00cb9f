"""The columns of ``beyond_accuracy``, recomputed from the files of the data and of the runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recbole_llm
from recbole_llm.evaluation.base import Evaluation
from recbole_llm.evaluation.beyond_accuracy import Popularity, beyond_accuracy, item_vectors
from recbole_llm.experiment.audit import audit
from recbole_llm.report import embedding_distance, intra_list_distance
from recbole_llm.settings.config import Config
from tests.refusals import refused
from tests.runs import histories_in, working_in

NDCG = {rank: 1 / math.log2(rank + 1) for rank in range(1, 11)}


def test_distances_by_vectors_are_those_by_a_table():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 4))
    vectors[3] = 0
    lengths = np.linalg.norm(vectors, axis=1)
    unit = vectors / np.where(lengths > 0, lengths, 1)[:, None]
    table = 1 - unit @ unit.T
    items = np.stack([rng.permutation(9)[:5] for _ in range(20)])
    assert embedding_distance(items, vectors) == pytest.approx(intra_list_distance(items, table), abs=1e-12)
    assert embedding_distance([[3], [1]], vectors).tolist() == [0, 0]


def test_vectors_are_near_where_users_are_shared():
    pairs = np.array([[user, item] for user in range(1, 9) for item in ((1, 2) if user % 2 else (3, 4))])
    vectors = item_vectors(pairs, n_items=6)
    assert np.allclose(vectors[1], vectors[2]) and np.allclose(vectors[3], vectors[4])
    assert abs(vectors[1] @ vectors[3]) < 1e-9 and not vectors[0].any() and not vectors[5].any()
    assert np.allclose(vectors @ vectors.T, item_vectors(np.concatenate([pairs, pairs]), 6) @ vectors.T)


def test_lists_that_are_not_full_have_no_part_in_distances():
    vectors = np.array([[0, 0], [1, 0], [1, 0], [0, 1]], dtype=float)
    lists = np.array([[1, 2], [3, 0]])
    own = Evaluation({}, None, np.array([[1, 1], [2, 2]]), np.array([0, 0]), lists)  # type: ignore[arg-type]
    popularity = Popularity(np.array([0, 1, 1, 1]), vectors)
    assert beyond_accuracy(own, np.array([[1], [2]]), popularity, "ndcg", 2)["embeddingdistance@2"] == 0.0


@pytest.fixture(scope="module")
def told(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two models with all columns."""
    folder = tmp_path_factory.mktemp("beyond")
    with working_in(folder):
        own = {**small, "checkpoint_dir": str(folder / "saved"), "beyond_accuracy": True}
        return recbole_llm.compare("Pop,SASRec", "world", **own)


def test_every_column_is_that_of_the_files(told, world: Path):
    histories = histories_in(world)
    items = [line.split("\t")[0] for line in (world / "world.item").read_text().splitlines()[1:]]
    before = [item for own in histories.values() for item in own[:-2]]
    counts = {item: before.count(item) for item in items}
    for result in told.results:
        rows = recbole_llm.load_run(result.folder).ranks
        lists = [own.split()[:10] for own in rows["top_items"]]
        given = [item for own in lists for item in own]
        found = result.test
        assert found["itemcoverage@10"] == pytest.approx(len(set(given)) / len(items))
        often = sorted(given.count(item) for item in items)
        weighed = sum((2 * place - len(items) - 1) * count for place, count in enumerate(often, start=1))
        assert found["giniindex@10"] == pytest.approx(weighed / sum(often) / len(items))
        total = sum(counts.values()) + len(items)
        bits = [np.mean([-math.log2((counts[item] + 1) / total) for item in own]) for own in lists]
        assert found["novelty@10"] == pytest.approx(np.mean(bits))
        usual = np.mean([np.mean([counts[item] for item in histories[user][:-1][-10:]]) for user in rows["user_id"]])
        given_popularity = np.mean([np.mean([counts[item] for item in own]) for own in lists])
        assert found["popularitylift@10"] == pytest.approx(given_popularity / usual - 1)
        gains = [NDCG.get(rank, 0.0) for rank in rows["rank"].fillna(0)]
        cold = [gain for gain, item in zip(gains, rows["item_id"], strict=True) if not counts[item]]
        warm = [gain for gain, item in zip(gains, rows["item_id"], strict=True) if counts[item]]
        for name, own in (("cold", cold), ("warm", warm)):
            assert found.get(f"ndcg_{name}@10") == (pytest.approx(np.mean(own)) if own else None)
        head = sorted(items, key=lambda item: -counts[item])[: len(items) // 5]  # the lower id first among equals
        for name, is_part in (("head", True), ("tail", False)):
            own = [gain for gain, item in zip(gains, rows["item_id"], strict=True) if (item in head) is is_part]
            assert found.get(f"ndcg_{name}@10") == (pytest.approx(np.mean(own)) if own else None)
    assert told.results[0].test["novelty@10"] < told.results[1].test["novelty@10"]  # Pop is what everybody knows
    assert told.results[0].test["popularitylift@10"] > told.results[1].test["popularitylift@10"]


def test_the_terminal_keeps_its_width_and_the_page_shows_all(told):
    text = told.text()
    assert all(len(line) <= 100 for line in text.splitlines() if line and line[0] not in "!†[")
    page = (next(Path(told.results[0].folder).parent.glob("results-*")) / "report.html").read_text()
    for head in ("Coverage@10", "Gini@10", "Novelty@10", "PopularityLift@10", "ListDistance@10", "NDCG of tail@10"):
        assert f'<th scope="col">{head}</th>' in page and f" {head}" in " ".join(text.split())


def test_what_the_untuned_llm_knows_is_what_the_audit_finds(small_llm, tmp_path):
    own = {**small_llm, "checkpoint_dir": str(tmp_path / "saved"), "beyond_accuracy": True}
    with working_in(tmp_path):
        run = recbole_llm.run("BIGRec", "world", **own)
        found = {one.check: one for one in audit(Config("BIGRec", "world", settings=own))}
    for name, check in (("titles_known", "titles known"), ("sequences_known", "sequences known")):
        assert run.summary[name] == pytest.approx(found[check].count / found[check].total)


@pytest.mark.parametrize("more", [{"candidates": 4}, {"model": "LR", "threshold": {"rating": 4}}])
def test_it_is_refused_where_nothing_is_ranked(small, more):
    own = {**small, "beyond_accuracy": True, **more}
    model = own.pop("model", "SASRec")
    for key in ("topk", "valid_metric") if model == "LR" else ():
        own.pop(key)
    with refused("beyond_accuracy", "conflict", "nothing is ranked"):
        recbole_llm.run(model, "world", **own)
