"""The example of a server answers what the run recommends, without this package where text is all that it needs."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from importlib.util import find_spec

import pytest

import recbole_llm
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.rows import load_rows
from recbole_llm.settings.config import Config
from tests.processes import REPOSITORY, forked_python
from tests.runs import working_in

EXAMPLE = REPOSITORY / "examples" / "serve_fastapi.py"
# Not importorskip: every worker would import it, and one of them runs these tests.
pytestmark = pytest.mark.skipif(
    find_spec("fastapi") is None, reason="the extra 'serve' is not installed: pip install 'recbole-llm[serve]'"
)

# In a process where importing this package fails.
CLIENT = """
import json, runpy, sys
sys.modules["recbole_llm"] = None
from fastapi.testclient import TestClient

client = TestClient(runpy.run_path(sys.argv[1])["create_app"](sys.argv[2]))
answers = [client.post("/recommend", json=question) for question in json.loads(sys.argv[3])]
print(json.dumps([client.get("/health").json(), *([answer.status_code, answer.json()] for answer in answers)]))
"""


@pytest.fixture(scope="module")
def served(small_llm, tmp_path_factory):
    """A run of BIGRec, and the items of its world by id."""
    folder = tmp_path_factory.mktemp("served")
    with working_in(folder):
        return recbole_llm.run("BIGRec", "world", **{**small_llm, "checkpoint_dir": str(folder / "saved")})


def test_the_server_recommends_what_the_run_does_without_this_package(served):
    titles = served.recommend(["i1"], k=20).set_index("item_id")["title"]
    histories = [["i3", "i1", "i7"], [titles["i5"], titles["i2"]], [f"i{number}" for number in range(1, 20)]]
    questions = [{"history": own, "k": k, "exclude_seen": bool(k % 2)} for own in histories for k in (3, 20)]
    wrong = [{"history": ["i1"], "topk": 3}, {"history": []}, {"history": ["i1"], "k": 0}, {"history": ["nothing"]}]
    done = forked_python(CLIENT, EXAMPLE, served.folder.resolve(), json.dumps(questions + wrong))
    health, *answers = json.loads(done.stdout)
    assert health == {"run": served.folder.name, "engine": "PlainModel"}
    for question, (status, answer) in zip(questions, answers, strict=False):
        expected = served.recommend([question["history"]], k=question["k"], exclude_seen=question["exclude_seen"])
        found = answer["items"]
        assert status == 200 and [line["score"] for line in found] == pytest.approx(
            expected["score"].tolist(), abs=1e-4
        )
        if len(set(expected["score"].round(4))) == len(expected):  # else equal scores may stand in another order
            assert [line["item_id"] for line in found] == expected["item_id"].tolist()
        assert {line["item_id"]: line["title"] for line in found}.items() <= titles.to_dict().items()
    assert [status for status, _ in answers[-4:]] == [422] * 4 and "nothing" in answers[-1][1]["detail"]


def test_other_runs_are_served_by_the_package(small, tmp_path):
    from fastapi.testclient import TestClient

    with working_in(tmp_path):
        run = recbole_llm.run("SASRec", "world", **{**small, "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1})
    client = TestClient(runpy.run_path(str(EXAMPLE))["create_app"](run.folder))
    assert client.get("/health").json()["engine"] == "WholeRun"
    answer = client.post("/recommend", json={"history": ["i3", "i1"], "k": 4, "exclude_seen": False}).json()
    assert [line["item_id"] for line in answer["items"]] == run.recommend(["i3", "i1"], k=4)["item_id"].tolist()
    assert client.post("/recommend", json={"history": ["nothing"]}).status_code == 422


def test_what_is_an_id_and_another_item_s_title_is_refused_as_recommend_does():
    plain = runpy.run_path(str(EXAMPLE))["PlainModel"]
    model = plain.__new__(plain)
    model.row_of_id, model.row_of = {"a": 0, "1984": 1, "c": 2}, {"1984": 2, "Babe": 0, "Brazil": 1}
    assert model._rows(["a", "c"]) == [0, 2] and model._rows(["Babe", "c"]) == [0, 2]
    assert model._rows(["1984", "a"]) == [1, 0] and model._rows(["Babe", "1984"]) == [0, 2]  # ids alone, titles alone
    for history, words in ((["1984"], "reads as item ids"), (["1984", "a", "Babe"], "the id of one item")):
        with pytest.raises(ValueError, match=words):
            model._rows(history)


@pytest.mark.parametrize("kind", ["token", "token_seq"])
def test_titles_are_those_that_the_run_read(tmp_path, kind):
    """Of a token every blank counts; the words of a sequence are joined by one."""
    titles = {"i1": "Foo  Bar\u00a0a", "i2": " b ", "i3": "c\u2028d", "i4": "  ", "i5": "e   f"}
    folder = tmp_path / "shop"
    folder.mkdir()
    lines = [f"{item}\t{title}" for item, title in titles.items()]
    (folder / "shop.item").write_text("\n".join([f"item_id:token\ttitle:{kind}", *lines, ""]))
    events = [f"u{user}\t{item}\t{step}" for user in range(3) for step, item in enumerate(titles)]
    (folder / "shop.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *events, ""]))
    settings = {"data_path": str(folder), "title_field": "title", "load_col": None}
    config = Config("BIGRec", "shop", settings=settings)
    catalog = ItemCatalog.from_dataset(load_rows(config, few_shot=False).whole, "title")
    expected = {token: title for token, title in zip(catalog.tokens, catalog.titles, strict=True) if title}
    assert runpy.run_path(str(EXAMPLE))["read_titles"](config.settings()) == expected


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, EXAMPLE, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is not a run folder" in done.stderr and "Traceback" not in done.stderr
