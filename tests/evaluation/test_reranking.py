"""``--rerank`` over trained models: what stays as it was, what is chosen, what is kept."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

import recbole_llm
from recbole_llm.data.rows import N_BEFORE, load_rows
from recbole_llm.evaluation.reranking import Reranking, earlier_rows, mean_distance
from recbole_llm.rerank import ItemSpace, interaction_vectors
from recbole_llm.settings.config import Config
from tests.pictures import drawn
from tests.processes import forked_python
from tests.refusals import refused
from tests.runs import TINY, working_in
from tests.worlds import make_world

SETTINGS = {
    **{"epochs": 2, "topk": [5, 10], "valid_metric": "NDCG@10", "show_progress": False, "category_field": "class"},
    **{"metrics": ["NDCG", "ILD"], "rerank_topn": 15},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("data") / "reranked", n_users=40, n_items=50, seed=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "saved"


def trained(world, saved, model="SASRec", **settings):
    saved.parent.mkdir(exist_ok=True)
    with working_in(saved.parent):
        return recbole_llm.run(
            model, world.name, data_path=str(world.parent), checkpoint_dir=str(saved), **{**SETTINGS, **settings}
        )


def lines(finished, split="test"):
    with open(finished.folder / f"{split}_ranks.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def plain(world, saved):
    return trained(world, saved)


def test_relevance_alone_changes_nothing(world, saved, plain):
    again = trained(world, saved, rerank="mmr", rerank_lambda=1.0)
    assert lines(again) == lines(plain) and again.metrics == plain.metrics


def test_diversity_brings_other_lists_of_the_same_best_items(world, saved, plain):
    again = trained(world, saved, rerank="mmr", rerank_lambda=0.2)
    assert again.metrics["ild@10"] > plain.metrics["ild@10"] + 0.02
    moved = [(old, new) for old, new in zip(lines(plain), lines(again), strict=True) if old["rank"] != new["rank"]]
    assert moved and all(int(one["rank"]) <= 15 for pair in moved for one in pair)
    for line in lines(again):
        items = line["top_items"].split()
        place = items.index(line["item_id"]) + 1 if line["item_id"] in items else None
        assert len(set(items)) == 10 and (place == int(line["rank"]) if place else int(line["rank"]) > 10)
    ndcg = np.mean([1 / np.log2(int(line["rank"]) + 1) * (int(line["rank"]) <= 10) for line in lines(again)])
    assert again.metrics["ndcg@10"] == pytest.approx(ndcg)


def test_validation_chooses_the_trade_off_and_the_folder_tells_how(world, saved):
    shares = [0.0, 0.5, 1.0]
    with drawn("rerank.png"):
        free = trained(world, saved, rerank="mmr", rerank_lambda=shares)
    kept = json.loads((free.folder / "rerank.json").read_text())
    curve = {point["lambda"]: point for point in kept["curve"]}
    assert list(curve) == [None, *shares] and curve[1.0]["ndcg"] == curve[None]["ndcg"]
    assert curve[kept["lambda"]]["ndcg"] == max(curve[share]["ndcg"] for share in shares)
    assert free.valid_metrics["ndcg@10"] == pytest.approx(curve[kept["lambda"]]["ndcg"])
    assert curve[0.0]["distance"] > curve[1.0]["distance"]
    assert (free.folder / "rerank.png").stat().st_size > 10_000
    least = (curve[0.0]["distance"] + curve[1.0]["distance"]) / 2
    bound = trained(world, saved, rerank="mmr", rerank_lambda=shares, rerank_min_distance=least)
    chosen = json.loads((bound.folder / "rerank.json").read_text())["lambda"]
    allowed = [share for share in shares if curve[share]["distance"] >= least]
    assert chosen in allowed and curve[chosen]["ndcg"] == max(curve[share]["ndcg"] for share in allowed)


def test_a_new_process_recommends_the_same(world, saved):
    """lmdh on a model without item vectors, and without categories: by what users did."""
    settings = {"category_field": None, "metrics": ["NDCG"], "rerank": "lmdh", "rerank_features": "id"}
    one, other = (trained(world, saved, "Pop", **settings) for _ in range(2))
    assert (one.folder / "rerank.json").read_bytes() == (other.folder / "rerank.json").read_bytes()
    code = """
        import sys
        from recbole_llm import load_run
        print(load_run(sys.argv[1]).recommend(users=["u1", "u2"], k=20, exclude_seen=True).to_json())
    """
    done = forked_python(code, one.folder, cwd=saved.parent)
    found = one.recommend(users=["u1", "u2"], k=20, exclude_seen=True)
    assert done.stdout.splitlines()[-1] == found.to_json()
    assert (np.diff(found["score"][:15]) < 0).all()  # behind the re-ranked ones, popularity ties


def test_an_llms_titles_can_be_put_in_another_order(world, saved):
    """The stages are shared: what is tuned knows nothing of the order of lists."""
    words = dict(word.removeprefix("--").split("=") for word in TINY if "lora" not in word)
    tiny = {name: int(value) if value.isdigit() else value for name, value in words.items()}
    tiny |= {"epochs": 0, "metrics": ["NDCG"], "test_sample_size": 10, "valid_sample_size": 10}
    plain = trained(world, saved, "BIGRec", **tiny)
    same = trained(world, saved, "BIGRec", **tiny, rerank="mmr", rerank_lambda=1)
    other = trained(world, saved, "BIGRec", **tiny, rerank="lmdh", rerank_rows=8, rerank_features="llm")
    assert lines(plain) == lines(same) and plain.metrics == same.metrics
    assert "rerank" not in plain.result.point and "rerank=mmr" in same.result.point
    stages = [json.loads((one.folder / "stages.json").read_text()) for one in (plain, same, other)]
    assert stages[0] == stages[1] == stages[2]
    facts = json.loads((other.folder / "rerank.json").read_text())
    assert len(facts["learnt"]["theta"]) == 10 and lines(other) != lines(plain)


def test_what_leaves_nothing_to_order_is_refused(world, saved):
    for settings, key, kind in (
        ({"rerank": "dpp"}, "rerank", "value"),
        ({"rerank": "mmr", "rerank_topn": 5}, "rerank_topn", "conflict"),
        ({"rerank": "mmr", "metrics": ["GAUC"], "valid_metric": "GAUC"}, "metrics", "conflict"),
        ({"rerank": "mmr", "rerank_min_distance": 0.5}, "rerank_min_distance", "conflict"),
        ({"rerank": "mmr", "rerank_features": "llm"}, "rerank_features", "conflict"),
        ({"rerank": "mmr", "rerank_features": "id", "rerank_distance": "jaccard"}, "rerank_distance", "conflict"),
        ({"rerank_lambda": 1.5}, "rerank_lambda", "value"),
        ({"category_field": None}, "category_field", "missing"),
    ):
        with refused(key, kind):
            trained(world, saved, **settings)


def test_items_of_the_same_users_have_like_vectors():
    """Two groups of users who share no item."""
    pairs = np.array(
        [[user, 1 + item + 4 * (user > 5)] for user in range(1, 11) for item in range(4) if item != user % 5]
    )
    vectors = interaction_vectors(pairs, 11, 9, width=4)
    table = ItemSpace(vectors).distances(np.arange(1, 9))
    assert table[:4, 4:].min() > 0.9 > 0.5 > table[:4, :4].mean()
    assert mean_distance(ItemSpace(vectors), np.array([[1, 2, 0], [3, 0, 0]])) == pytest.approx(table[0, 1] / 2)


EARLIER = {
    **{"user_id": [1, 2, 1], "item_id": [7, 8, 8], "item_id_list": [[1, 2, 3, 0], [4, 0, 0, 0], [1, 2, 3, 7]]},
    **{"item_length": [3, 1, 4], N_BEFORE: [3, 1, 4]},
}
BEFORE = np.array([[1, 1], [1, 2], [1, 3], [2, 4]])


class Source(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.inter_feat)


def rows() -> Any:
    """Three rows, of which the last one's history holds the target of the first."""
    feat = Interaction({name: torch.tensor(values) for name, values in EARLIER.items()})
    config = {"LIST_SUFFIX": "_list", "benchmark_filename": None, "rerank": "lmdh"}
    names = {"uid_field": "user_id", "iid_field": "item_id", "item_list_length_field": "item_length", "config": config}
    own = Source(inter_feat=feat, item_num=9, user_num=3, pairs_before=BEFORE, **names)
    return SimpleNamespace(valid=own, test=own, whole=own)


def test_rows_one_step_earlier_show_no_target_and_have_a_history():
    found = earlier_rows(rows(), 9, seed=0)
    assert {name: found[name].tolist() for name in ("item_id", "item_id_list", "item_length")} == {
        "item_id": [3],
        "item_id_list": [[1, 2, 0, 0]],
        "item_length": [2],
    }


def test_what_was_not_chosen_is_neither_the_target_nor_of_the_history():
    settings: Any = SimpleNamespace(rerank_rows=9, rerank_topn=3, rerank_negatives=99, rerank_window=5)
    model = SimpleNamespace(
        device="cpu", eval=lambda: None, full_sort_predict=lambda rows: torch.arange(9.0).repeat(len(rows), 1)
    )
    (example,) = Reranking(None, 2, 0.5)._examples({"LIST_SUFFIX": "_list"}, settings, rows(), model)  # type: ignore[arg-type]
    assert example.items.tolist()[0] == 3 and sorted(example.items[1:]) == [4, 5, 6, 7, 8]
    assert example.window.tolist() == [1, 2]


LEFT_OUT = [({"LS": "valid_and_test"}, "user"), ({"LS": "test_only"}, "user")]
SHARES = [({"RS": shares}, group) for shares in ([0.8, 0, 0.2], [0.6, 0.2, 0.2]) for group in ("user", "none")]


@pytest.mark.parametrize(("split", "group"), [*LEFT_OUT, *SHARES])
@pytest.mark.parametrize("model", ["SASRec", "Pop"])
def test_nothing_is_learnt_from_a_target_of_validation_or_test(world, model, split, group):
    settings = {"data_path": str(world.parent), "rerank": "lmdh", "category_field": "class", "MAX_ITEM_LIST_LENGTH": 4}
    settings |= {"eval_args": {"split": split, "order": "TO", "group_by": group, "mode": "full"}}
    loaded = load_rows(Config(model, world.name, settings=settings), few_shot=True)
    held_out: set[tuple[int, int]] = set()
    for part in (loaded.valid, loaded.test):
        held_out.update(zip(*(part.inter_feat[name].tolist() for name in ("user_id", N_BEFORE)), strict=True))
    found = earlier_rows(loaded, 1000, seed=0)
    assert len(found) > 5
    for user, before in zip(found["user_id"].tolist(), found[N_BEFORE].tolist(), strict=True):
        assert not {(user, nth) for nth in range(before)} & held_out


def test_presplit_rows_are_learnt_from_as_far_as_training_tells_of_their_histories():
    own = rows()
    own.whole.config["benchmark_filename"] = ["train", "valid", "test"]
    assert earlier_rows(own, 9, seed=0)["item_id"].tolist() == [3]
    own.whole.pairs_before = BEFORE[1:]
    with refused("rerank", "data", "no evaluated row has one; choose mmr"):
        earlier_rows(own, 9, seed=0)


@pytest.mark.parametrize(("least", "chosen"), [(None, 0.8), (0.5, 0.2), (9.0, 0.2)])
def test_the_best_of_the_lists_that_are_far_enough_are_taken_and_without_any_the_farthest(monkeypatch, least, chosen):
    def point(self: Reranking, share: float | None, _: Any) -> dict[str, Any]:
        return {"lambda": share, "ndcg": share or 0.0, "distance": 1 - (share or 0.0)}

    monkeypatch.setattr(Reranking, "_point", point)
    settings = SimpleNamespace(trade_offs=[0.2, 0.8], rerank_min_distance=least)
    own = Reranking(SimpleNamespace(settings=settings), 2, 0.5)  # type: ignore[arg-type]
    own.choose({"valid": None}, {"valid": None}, lambda *_: None)  # type: ignore[arg-type, dict-item, return-value]
    assert own.trade_off == chosen
