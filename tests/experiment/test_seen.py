"""What a recommendation without seen items leaves out: the items themselves, and what an LLM takes for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import recbole_llm
from recbole_llm import Run
from tests.processes import REPOSITORY, forked_python
from tests.runs import working_in
from tests.worlds import make_world

TWINS = ("i4", "i7", "i9")
SERVED = """
import json, runpy, sys
sys.modules["recbole_llm"] = None
from pathlib import Path
model = runpy.run_path(sys.argv[1])["PlainModel"](Path(sys.argv[2]))
found = [model.recommend(["i9", "i2"], 20, exclude_seen)["items"] for exclude_seen in (True, False)]
print(json.dumps([[line["item_id"] for line in lines] for lines in found]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> dict[str, Run]:
    """Runs on a world in which three items share a title."""
    world = make_world(tmp_path_factory.mktemp("twins") / "shop", n_users=8, n_items=12)
    lines = [line.split("\t") for line in (world / "shop.item").read_text().splitlines()]
    lines = [[line[0], "One Title", *line[2:]] if line[0] in TWINS else line for line in lines]
    (world / "shop.item").write_text("\n".join("\t".join(line) for line in lines) + "\n")
    shared: dict[str, Any] = {"data_path": str(world.parent), "checkpoint_dir": str(world.parent / "saved")}
    shared |= {"show_progress": False, "topk": [5], "valid_metric": "NDCG@5", "epochs": 1}
    llm = {"llm_path": str(llama), "prompt_style": "plain", "num_beams": 2, "max_new_tokens": 6, "lora_dropout": 0}
    llm |= {"lora_target_modules": "auto", "train_batch_size": 32}
    with working_in(world.parent):
        return {
            "BIGRec": recbole_llm.run("BIGRec", "shop", **shared, **llm),
            "SASRec": recbole_llm.run("SASRec", "shop", **shared),
        }


def test_an_llm_recommends_no_seen_title_under_another_id(runs: dict[str, Run]) -> None:
    every = {f"i{number}" for number in range(1, 13)}
    for seen in TWINS:
        assert set(runs["BIGRec"].recommend([[seen, "i1"]], k=20)["item_id"]) == every
        found = runs["BIGRec"].recommend([[seen, "i1"]], k=20, exclude_seen=True)
        assert set(found["item_id"]) == every - {*TWINS, "i1"} and "One Title" not in set(found["title"])
        by_ids = runs["SASRec"].recommend([[seen, "i1"]], k=20, exclude_seen=True)
        assert set(by_ids["item_id"]) == every - {seen, "i1"}
    assert len(runs["BIGRec"].recommend([["i1"]], k=5, exclude_seen=True)) == 5


def test_the_example_of_a_server_leaves_out_the_same(runs: dict[str, Run]) -> None:
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed: pip install 'recbole-llm[serve]'")
    folder = runs["BIGRec"].folder.resolve()
    served = json.loads(forked_python(SERVED, REPOSITORY / "examples" / "serve_fastapi.py", folder).stdout)
    for lines, exclude_seen in zip(served, (True, False), strict=True):
        found = runs["BIGRec"].recommend([["i9", "i2"]], k=20, exclude_seen=exclude_seen)
        assert sorted(lines) == sorted(found["item_id"])
