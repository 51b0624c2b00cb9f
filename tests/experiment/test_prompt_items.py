"""Recommendations of a run whose prompts show a part of each history."""

from __future__ import annotations

import recbole_llm
from tests.runs import asked_in_new_process, working_in


def test_recommendations_are_those_of_the_items_that_prompts_show(small_llm, tmp_path):
    settings = {**small_llm, "checkpoint_dir": str(tmp_path / "saved"), "prompt_items": 2}
    with working_in(tmp_path):
        run = recbole_llm.run("BIGRec", "world", **settings)
    long, short = ([["i1", "i2", "i4", "i6"]], [["i4", "i6"]])
    found = [run.recommend(given, k=5, exclude_seen=False)["item_id"].tolist() for given in (long, short)]
    assert found[0] == found[1]
    assert not {"i1", "i2", "i4", "i6"} & set(run.recommend(long, k=14, exclude_seen=True)["item_id"])
    again, here = asked_in_new_process(run, tmp_path, run.users[:3], k=4)
    assert again == here
    assert "; prompts of BIGRec show 2 of them." in (run.folder / "report.html").read_text(encoding="utf-8")
