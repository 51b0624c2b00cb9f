"""The example of a server answers what the run recommends, without this package where text is all that it needs."""

from __future__ import annotations

import json
import runpy
from importlib.util import find_spec

import pytest

import recbole_llm
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
    wrong = [{"history": ["nothing"]}, {"history": []}, {"history": ["i1"], "k": 0}]
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
    assert [status for status, _ in answers[-3:]] == [422, 422, 422] and "nothing" in answers[-3][1]["detail"]


def test_other_runs_are_served_by_the_package(small, tmp_path):
    from fastapi.testclient import TestClient

    with working_in(tmp_path):
        run = recbole_llm.run("SASRec", "world", **{**small, "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1})
    client = TestClient(runpy.run_path(str(EXAMPLE))["create_app"](run.folder))
    assert client.get("/health").json()["engine"] == "WholeRun"
    answer = client.post("/recommend", json={"history": ["i3", "i1"], "k": 4, "exclude_seen": False}).json()
    assert [line["item_id"] for line in answer["items"]] == run.recommend(["i3", "i1"], k=4)["item_id"].tolist()
    assert client.post("/recommend", json={"history": ["nothing"]}).status_code == 422
