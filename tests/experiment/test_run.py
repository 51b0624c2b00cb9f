"""The front door in Python: a run, what it holds, what it recommends, and the same run again in another process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import recbole_llm
from recbole_llm import Run
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.experiment.asked import item_lists
from recbole_llm.experiment.command import main
from recbole_llm.grounding.embedding import EmbeddingGrounding
from recbole_llm.grounding.ranking import Ranking
from recbole_llm.prompt.titles import clean_answer
from tests.processes import forked_python
from tests.refusals import refused
from tests.runs import histories_in, metrics_of, working_in


@pytest.fixture(scope="module")
def runs(small: dict[str, Any], small_llm: dict[str, Any], saved: Path) -> dict[str, Run]:
    """One of a general model, one of a sequential one, one of an LLM."""
    saved.mkdir(parents=True, exist_ok=True)
    with working_in(saved.parent):
        return {
            "Pop": recbole_llm.run("Pop", "world", **small),
            "SASRec": recbole_llm.run("SASRec", "world", **small),
            "BIGRec": recbole_llm.run("BIGRec", "world", **small_llm),
        }


@pytest.fixture(scope="module")
def titles(world: Path) -> dict[str, str]:
    lines = (world / f"{world.name}.item").read_text().splitlines()[1:]
    return {line.split("\t")[0]: line.split("\t")[1] for line in lines}


@pytest.mark.parametrize("name", ["Pop", "SASRec", "BIGRec"])
def test_a_run_has_metrics_ranks_history_and_a_model(runs, name):
    run = runs[name]
    assert run.metrics == json.loads((run.folder / "metrics.json").read_text())["test"]
    assert list(run.ranks) == ["user_id", "item_id", "rank", "top_items"] and len(run.ranks) == 12
    assert run.metrics == pytest.approx(metrics_of(run.ranks["rank"].tolist(), (1, 5, 10)), abs=1e-14)
    assert [record["epoch"] for record in run.history] == list(range(1, 1 + run.result.epochs))
    assert not run.model.training and str(run.folder) in repr(run) and "ndcg@10=" in repr(run)


@pytest.mark.parametrize("name", ["SASRec", "BIGRec"])
def test_recommended_is_what_the_evaluation_ranked_for_the_same_history(runs, world, name):
    histories = histories_in(world)
    users = runs[name].ranks["user_id"].tolist()
    found = runs[name].recommend([histories[user][:-1][-50:] for user in users], k=10)
    assert list(found) == ["query", "rank", "item_id", "title", "score"]
    for query, expected in enumerate(runs[name].ranks["top_items"].str.split()):
        own = found[found["query"] == query]
        assert own["item_id"].tolist() == expected and own["rank"].tolist() == list(range(1, 11))
        assert own["score"].is_monotonic_decreasing


@pytest.mark.parametrize("name", ["SASRec", "BIGRec"])
def test_titles_ids_and_a_mixture_of_both_give_the_same(runs, world, titles, name):
    own = histories_in(world)["u1"][:3]
    by_id = runs[name].recommend(own, k=4)
    assert by_id["title"].tolist() == [titles[item] for item in by_id["item_id"]]
    for other in ([titles[item] for item in own], [titles[own[0]], *own[1:]]):
        assert runs[name].recommend([other], k=4).equals(by_id)


@pytest.mark.parametrize("name", ["SASRec", "BIGRec"])
def test_a_user_is_recommended_to_by_all_interactions_those_of_the_test_included(runs, world, name):
    histories = histories_in(world)
    users = sorted(histories)[:3]
    found = runs[name].recommend(users=users, k=5)
    whole = runs[name].recommend([histories[user] for user in users], k=5)
    assert found["user_id"].tolist() == np.repeat(users, 5).tolist()
    assert found.drop(columns="user_id").equals(whole.drop(columns="query"))
    assert runs[name].recommend(users=users[1], k=5)["item_id"].tolist() == whole["item_id"].tolist()[5:10]


@pytest.mark.parametrize("name", ["Pop", "SASRec", "BIGRec"])
def test_seen_items_are_left_out_and_the_others_keep_their_order(runs, world, name):
    histories = histories_in(world)
    users = sorted(histories)[:3]
    everything = runs[name].recommend(users=users, k=1000)
    found = runs[name].recommend(users=users, k=5, exclude_seen=True)
    for user in users:
        own = everything[everything["user_id"] == user]
        left = own[~own["item_id"].isin(histories[user])]["item_id"].tolist()
        assert found[found["user_id"] == user]["item_id"].tolist() == left[:5]
    if name != "Pop":
        asked = [histories[user] for user in users]
        by_history = runs[name].recommend(asked, k=5, exclude_seen=True)
        assert by_history["item_id"].tolist() == found["item_id"].tolist()


def test_answers_to_ten_rows_are_told_in_words(runs, titles, world):
    run, histories = runs["BIGRec"], histories_in(world)
    text = (run.folder / "answers.md").read_text(encoding="utf-8")
    ranks = run.ranks
    n_first = ranks["top_items"].str.split(" ").str[0].nunique()
    assert f"Of 12 test rows, {(ranks['rank'] <= 10).sum()} have" in text and f" {n_first} different items" in text
    blocks = text.split("\n\n")[2:]
    assert len(blocks) == 10 and not (runs["SASRec"].folder / "answers.md").exists()
    records = json.loads((run.folder / "examples.json").read_text(encoding="utf-8"))
    row_of = {pair: row for row, pair in enumerate(zip(ranks["user_id"], ranks["item_id"], strict=True))}
    for block, record in zip(blocks, records, strict=True):
        row = row_of[record["user_id"], record["item_id"]]
        user, target, rank, best = ranks.loc[row, ["user_id", "item_id", "rank", "top_items"]]
        first = "; ".join(titles[item] for item in best.split(" ")[:5])
        assert f"    - ranked first: {first}\n    - came next: {titles[target]}, at rank {rank}" in block
        assert "; ".join(titles[item] for item in histories[user][:-1][-5:]) in block.splitlines()[0]
        assert f"    - answer: {clean_answer(record['answer']) or '(none)'}\n" in block


def test_an_adapter_is_served_by_transformers_and_peft_alone(runs, saved):
    """A new process runs the block of the card, and this package is not in it."""
    run = runs["BIGRec"]
    card = (run.folder / "adapter" / "README.md").read_text(encoding="utf-8")
    prompt = json.loads((run.folder / "prompt.json").read_text(encoding="utf-8"))
    assert all(f"| {name} | {value:.4f} |" in card for name, value in run.metrics.items())
    told = [*run.result.notes, *run.result.warnings]
    assert told and all(f"- {line}" in card.splitlines() for line in told)
    assert prompt["example"]["prompt"] in card and prompt["is_plain_text"]
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in (run.folder / "adapter").iterdir())
    code = card.partition("```python\n")[2].partition("```")[0]
    code += "import sys\nassert ids[0].tolist() == prompt['example']['token_ids'] and 'recbole_llm' not in sys.modules"
    done = forked_python(code, cwd=run.folder.resolve())
    row = run._asked().rows.test.inter_feat[:1]
    assert done.stdout.splitlines()[-1] == run.model.generate_text(row)[0]


def test_the_command_writes_what_the_run_recommends(runs, saved, titles, tmp_path, capsys):
    run, out = runs["SASRec"], tmp_path / "recs.csv"
    words = ["recommend", str(run.folder.resolve()), "--k=4", "--exclude-seen"]
    with working_in(saved.parent):
        assert main([*words, "--users=all", f"--out={out}", "--batch-size=5"]) == 0
        expected = run.recommend(users=run.users, k=4, exclude_seen=True)
        pd.testing.assert_frame_equal(pd.read_csv(out, dtype={"user_id": str, "item_id": str}), expected)
        assert main([*words, "--users=all", f"--out={out}"]) == 2
        assert "recs.csv exists" in capsys.readouterr().err
        history = run.recommend(["i1", "i2"], k=4, exclude_seen=True)
        assert main([*words, f"--history={titles['i1']}; {titles['i2']}"]) == 0
        printed = capsys.readouterr().out
    assert [line.split()[2] for line in printed.splitlines()[1:5]] == history["item_id"].tolist()


def test_a_general_model_recommends_to_users_and_takes_no_histories(runs):
    run = runs["Pop"]
    found = run.recommend(users=run.ranks["user_id"], k=10)
    assert found.groupby("user_id", sort=False)["item_id"].agg(" ".join).tolist() == run.ranks["top_items"].tolist()
    with refused("histories", "conflict", "histories: Pop recommends for its known users only; give users") as caught:
        run.recommend(["i1"])
    assert caught.value.key == "histories"


def test_a_sequential_model_that_reads_the_user_takes_no_histories(small, saved):
    with working_in(saved.parent):
        run = recbole_llm.run("Caser", "world", **{**small, "epochs": 1})
    with refused("histories", "conflict", "histories: Caser reads the column 'user_id' of every interaction; give use"):
        run.recommend(["i1", "i2"])
    assert len(run.recommend(users=["u1", "u2"], k=3)) == 6


def test_a_history_longer_than_the_model_reads_keeps_its_newest_items(runs, world):
    own = histories_in(world)["u1"]
    long = own * 20
    assert runs["SASRec"].recommend(long, k=5).equals(runs["SASRec"].recommend(long[-50:], k=5))


@pytest.mark.parametrize(
    ("given", "message", "key", "kind"),
    [
        (
            {"histories": [["i1", "Nothing of the kind"]]},
            "histories: history 0: 'Nothing of the kind': no item has this id or",
            "histories",
            "unknown",
        ),
        ({"histories": [["i1"], []]}, "histories: history 1 is empty", "histories", "value"),
        ({"users": ["u1", "nobody"]}, "users: no user has the id 'nobody'", "users", "unknown"),
        ({"users": ["u1"], "histories": ["i1"]}, "recommend: give either histories or users", "recommend", "missing"),
        ({}, "recommend: give either histories or users", "recommend", "missing"),
        ({"histories": []}, "histories: there are none", "histories", "missing"),
        ({"users": []}, "users: there are none", "users", "missing"),
        ({"users": ["u1"], "k": 0}, "k: 0 is not allowed", "k", "value"),
        ({"users": ["u1"], "k": "3"}, "k: '3' is not allowed; give an integer", "k", "value"),
        ({"histories": ["i1", ["i2"]]}, r"history 0 is 'i1', not a list .*; write \['i1'\]", "histories", "value"),
        ({"histories": [["i1"], "i2"]}, "history 1 is 'i2', not a list", "histories", "value"),
        ({"histories": ["i1", None]}, "history 0 is 'i1', not a list", "histories", "value"),
        ({"histories": [["i1"], None]}, "history 1 is a NoneType, not a list", "histories", "value"),
        ({"histories": [["i1", float("nan")]]}, "history 0: nan is not an item id or title", "histories", "value"),
        ({"histories": [1.0]}, "history 0 is a float, not a list", "histories", "value"),
        ({"histories": pd.DataFrame({"a": ["i1"]})}, "histories: a DataFrame, not a list", "histories", "value"),
        ({"histories": {"a": ["i1"]}}, "histories: a dict, not a list", "histories", "value"),
        ({"users": 2.5}, "users: a float, not a list", "users", "value"),
        ({"users": ["u1", None]}, "users: user 1: None is not an id", "users", "value"),
        ({"histories": "i1"}, r"histories: 'i1' is one text, .*; write \['i1'\]", "histories", "value"),
    ],
)
def test_what_cannot_be_recommended_is_one_line(runs, given, message, key, kind):
    with refused(key, kind, message):
        runs["SASRec"].recommend(**given)


def given(titles: list[str | None], is_llm: bool = False) -> Any:
    """A model whose items have these titles and the ids 1, 2, ..."""
    tokens = ["[PAD]", *map(str, range(1, len(titles)))]
    numbers = {token: number for number, token in enumerate(tokens)}
    whole = SimpleNamespace(iid_field="item_id", field2token_id={"item_id": numbers})
    catalog = ItemCatalog(titles, tokens=tokens)
    return SimpleNamespace(catalog=catalog, rows=SimpleNamespace(whole=whole), config=SimpleNamespace(is_llm=is_llm))


def test_a_title_that_is_the_id_of_another_item_is_read_by_its_neighbours_or_refused():
    trained = given([None, "2", "Heat", "Fargo"])
    assert item_lists(trained, [["2", "1"], ["2", "Heat"]]) == [[2, 1], [1, 2]]
    with refused("histories", "conflict", "history 0 reads as item ids and as titles of other items"):
        item_lists(trained, ["2"])
    with refused("histories", "conflict", "'2' is the id of one item and the title of another"):
        item_lists(trained, ["2", "3", "Heat"])


def test_a_title_of_several_items_is_one_only_for_what_reads_titles(caplog):
    titles = [None, "Heat", "Fargo", "Heat"]
    assert item_lists(given(titles), [["3", "2"], ["Fargo"]]) == [[3, 2], [2]]
    with refused("histories", "conflict", "history 1: 'Heat' is the title of 2 items .'1', '3'.; name one by its id"):
        item_lists(given(titles), [["2"], ["Fargo", "Heat"]])
    assert item_lists(given(titles, is_llm=True), [["Heat"], ["Heat", "2"]]) == [[1], [1, 2]]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"][-1:] == [
        "'Heat' is the title of 2 items ('1', '3'); the first is taken."
    ]


def test_histories_and_users_are_read_alike_from_lists_tuples_arrays_and_generators(runs):
    run = runs["SASRec"]
    expected = run.recommend([["i1", "i2"]], k=3)
    for same in (["i1", "i2"], ("i1", "i2"), np.array(["i1", "i2"]), pd.Series(["i1", "i2"]), [("i1", "i2")]):
        assert run.recommend(same, k=3).equals(expected)
    assert run.recommend((own for own in [["i1", "i2"]]), k=3).equals(expected)
    assert run.recommend(users=(user for user in ["u1", "u2"]), k=2).equals(run.recommend(users=["u1", "u2"], k=2))


def test_models_that_rank_nothing_recommend_nothing(world, small, small_llm, saved):
    with working_in(saved.parent):
        chooses = recbole_llm.run("BIGRec", "world", **{**small_llm, "epochs": 0, "candidates": 4})
        likes = recbole_llm.run("LR", "world", **{**small, "threshold": {"rating": 4}, "valid_metric": "AUC"})
    with refused("candidates", "conflict", "candidates: this BIGRec chooses among the titles of its prompt"):
        chooses.recommend(["i1"])
    with refused("recommend", "conflict", "LR predicts clicks on given items and cannot rank the catalogue"):
        likes.recommend(users=["u1"])
    assert list(likes.ranks)[2:] == ["label", "score"] and set(likes.metrics) == {"auc", "logloss"}
    assert list(chooses.ranks)[2:4] == ["answer", "valid"]


def test_a_run_loaded_in_another_process_is_the_same_run(runs, saved):
    program = (
        "import sys, json, recbole_llm\n"
        "assert 'recbole_llm.experiment.run' not in sys.modules\n"
        "for name, folder in json.loads(sys.argv[1]).items():\n"
        "    run = recbole_llm.load_run(folder)\n"
        "    found = run.recommend(users=['u1', 'u2'], k=4)\n"
        "    print('FOUND', json.dumps([name, run.metrics, run.history, run.ranks['rank'].tolist(), run.result.model,\n"
        "        found['item_id'].tolist(), found['score'].tolist()]))\n"
    )
    folders = json.dumps({name: str(run.folder) for name, run in runs.items()})
    done = forked_python(program, folders, cwd=saved.parent)
    for line in (line for line in done.stdout.splitlines() if line.startswith("FOUND")):
        name, metrics, history, ranks, model, items, scores = json.loads(line.removeprefix("FOUND "))
        run, found = runs[name], runs[name].recommend(users=["u1", "u2"], k=4)
        assert (metrics, history, model) == (run.metrics, run.history, run.result.model)
        assert ranks == run.ranks["rank"].tolist() and items == found["item_id"].tolist()
        assert scores == pytest.approx(found["score"].tolist(), rel=1e-12)
    assert done.stdout.count("FOUND") == 3


def test_after_a_curriculum_the_model_at_hand_is_that_of_the_last_stage(small_llm, saved):
    """Each stage is evaluated, the last one first; what recommends afterwards is what the folder holds."""
    settings = {**small_llm, "train_sample_size": 16, "learning_rate": 0.05, "distance_rows": 6}
    with working_in(saved.parent):
        run = recbole_llm.run("SOFT", "world", **settings)
        again = recbole_llm.load_run(run.folder)
        assert (run.folder / "stage_table.md").is_file()
        found, expected = run.recommend(users=["u1", "u2"]), again.recommend(users=["u1", "u2"])
    assert found.equals(expected)
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, run.model.state_dict()[name]), name


class StubIndex:
    """Ranks every row's items by their number, and knows how often it was asked."""

    exact = True

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool, int]] = []

    def rank(self, queries: np.ndarray, targets: np.ndarray | None, k: int) -> Ranking:
        self.asked.append((len(queries), targets is not None, k))
        ranking = Ranking.nothing(len(queries), k)
        ranking.top_items[:], ranking.top_scores[:] = np.arange(1, k + 1), -np.arange(k)
        if targets is not None:
            ranking.ranks[:] = targets - 1
        return ranking


def test_evaluation_and_recommendation_ask_the_index(small_llm, saved, monkeypatch):
    stub = StubIndex()
    monkeypatch.setattr(EmbeddingGrounding, "index", property(lambda self: stub))
    with working_in(saved.parent):
        run = recbole_llm.run("BIGRec", "world", **{**small_llm, "epochs": 0})
    assert stub.asked == [(12, True, 10)] * 2 + [(10, False, 5)]  # validation, test, and the examples of the report
    ids = run.model.catalog.tokens
    assert run.ranks["top_items"].tolist() == [" ".join(ids[1:11])] * 12
    assert run.ranks["rank"].tolist() == [ids.index(item) for item in run.ranks["item_id"]]
    assert run.metrics == pytest.approx(metrics_of(run.ranks["rank"].tolist(), (1, 5, 10)), abs=1e-14)
    found = run.recommend([["i1", "i2"], ["i3"]], k=3)
    assert stub.asked[3:] == [(2, False, 3)]
    assert found["item_id"].tolist() == ids[1:4] * 2 and found["score"].tolist() == [0, -1, -2] * 2


def test_a_folder_that_no_run_left_is_refused(tmp_path):
    comparison, run = tmp_path / "compare-x", tmp_path / "run"
    comparison.mkdir()
    with refused("", "file", "is not a run folder: .*; give the folder of a finished run$"):
        recbole_llm.load_run(comparison)
    run.mkdir()
    (run / "metrics.json").write_text("{}")
    for folder in (comparison, tmp_path, tmp_path / "missing"):
        with refused("", "file", f"of a finished run, such as {run}$"):
            recbole_llm.load_run(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b""),
        ("metrics.json", b"[1, 2]"),
        ("metrics.json", b'{"test": {"ndcg@10": "high"}}'),
        ("run.json", b'{"rows": '),
        ("run.json", b'{"rows": "x", "of_another_version": 1}'),
    ],
)
def test_a_file_of_a_run_that_is_cut_or_foreign_is_named(runs, tmp_path, name, content):
    folder = tmp_path / "run"
    shutil.copytree(runs["Pop"].folder, folder)
    (folder / name).write_bytes(content)
    with refused("", "file", "a file of this run is damaged, missing or of another run"):
        recbole_llm.load_run(folder)


@pytest.mark.parametrize(("name", "file"), [("Pop", "model.pth"), ("BIGRec", "adapter")])
def test_a_run_without_what_it_learned_recommends_nothing(runs, tmp_path, name, file):
    """The untuned LLM must not answer in place of the tuned one."""
    folder = tmp_path / "run"
    shutil.copytree(runs[name].folder, folder)
    shutil.rmtree(folder / file) if (folder / file).is_dir() else (folder / file).unlink()
    with refused("", "file", "missing|no such checkpoint"):
        recbole_llm.load_run(folder).recommend(users=["u1"])
