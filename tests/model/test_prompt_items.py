"""``prompt_items``: prompts show a part of each history, and everything else reads all of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from recbole_llm.data.rows import Rows, load_rows
from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.prompt import Example
from recbole_llm.selection.training_rows import TrainingRows, read_examples
from recbole_llm.settings.config import Config
from recbole_llm.trainer.negatives import draw_negatives
from tests.model.test_tallrec import LABELLED, rated  # noqa: F401
from tests.processes import forked_python
from tests.runs import words_for, working_in

AUXILIARY = "--recommender_config={epochs: 1, train_batch_size: 64}"
CODES = ("--sid_levels=2", "--sid_codes=4", "--num_beams=10")
POINTS = {
    "BIGRec": (),
    "LLaRA": (AUXILIARY,),
    "iLoRA": ("--adapter=ilora", AUXILIARY),
    "TALLRec": LABELLED,
    "SemID": (*CODES, "--epochs=1"),
    "TTDS": (*CODES, "--epochs=1"),  # whose users have codes by whole histories
    "Laser": ("--epochs=1", AUXILIARY),
    "RecLoRA": (*LABELLED, "--reclora_num_loras=3", AUXILIARY),
}


def untuned(name: str, world: Path, saved: Path, *words: str) -> tuple[LLMRecommender, Rows]:
    """A model with the session's stages, on few rows."""
    given = words_for(name, world, saved, "--epochs=0", "--train_sample_size=16", *POINTS[name], *words)
    config = Config(name, world.name, argv=[word for word in given if not word.startswith("--model=")])
    rows = load_rows(config, True)
    with working_in(saved.parent):
        return config.model_class(config, rows.whole).eval(), rows


def titled(model: LLMRecommender, history: list[int]) -> list[int]:
    return [index for index, item in enumerate(history) if model.catalog.titles[item] is not None]


def cut_by_hand(model: LLMRecommender, example: Example, kept: list[int]) -> list[int] | None:
    """Token ids of a prompt whose history was cut before it."""
    likes = None if example.likes is None else [example.likes[index] for index in kept]
    cut = replace(example, history=[example.history[index] for index in kept], likes=likes)
    return model.prompts.prompt(cut) if model.prompts.has_prompt(cut) else None


@pytest.mark.parametrize("name", POINTS)
def test_prompts_show_the_newest_and_all_else_reads_the_whole(name, rated, saved):  # noqa: F811
    whole, rows = untuned(name, rated, saved)
    model, _ = untuned(name, rated, saved, "--prompt_items=2")
    feat = rows.test.inter_feat
    histories = whole.histories(feat)
    assert model.histories(feat) == histories and max(map(len, histories)) > 4
    assert [one.history for one in model.examples(feat)] == histories
    expected = [cut_by_hand(whole, one, titled(whole, list(one.history))[-2:]) for one in whole.examples(feat)]
    assert model.row_prompts(feat) == expected != whole.row_prompts(feat)
    before, after = whole.row_inputs(histories), model.row_inputs(model.histories(feat))
    assert before.keys() == after.keys() and bool(before) == (name in ("iLoRA", "RecLoRA"))
    for key, values in before.items():
        torch.testing.assert_close(after[key], values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["BIGRec", "RecLoRA"])
def test_only_what_depends_on_prompts_is_another_stage(name, rated, saved):  # noqa: F811
    whole, rows = untuned(name, rated, saved)
    facts = whole.facts()
    as_long, _ = untuned(name, rated, saved, "--prompt_items=10")  # MAX_ITEM_LIST_LENGTH is
    assert as_long.facts() == facts and as_long.row_prompts(rows.test.inter_feat) == whole.row_prompts(
        rows.test.inter_feat
    )
    fewer, _ = untuned(name, rated, saved, "--prompt_items=2")
    assert {key for key, value in fewer.facts().items() if value != facts[key]} == {"prompt"}
    assert fewer.adapter_owner == whole.adapter_owner


def test_similar_items_are_the_nearest_by_the_states_after_their_titles(rated, saved):  # noqa: F811
    whole, rows = untuned("TALLRec", rated, saved)
    model, _ = untuned("TALLRec", rated, saved, "--prompt_items=3", "--prompt_items_by=similar")
    feat, titles, tokenizer = rows.whole.inter_feat, model.catalog.titles, model.backbone.tokenizer
    states = np.zeros((len(titles), model.backbone.model.config.hidden_size))
    with torch.no_grad(), model.untuned() as llm:
        for item, title in enumerate(titles):
            if title is not None:
                ids = tokenizer(title, return_tensors="pt")["input_ids"]
                output = llm(input_ids=ids, output_hidden_states=True)
                states[item] = output.hidden_states[-1][0, -1].double()
    cosines = cosine_similarity(states)
    model.prepare()
    assert np.array_equal(model.catalog.has_title, model.title_states.any(axis=1))
    expected, differs = [], 0
    for example in whole.examples(feat):
        kept = titled(whole, list(example.history))
        nearest = sorted(kept, key=lambda index: (round(cosines[example.history[index], example.target], 5), index))
        differs += sorted(nearest[-3:]) != kept[-3:]
        expected.append(cut_by_hand(whole, example, sorted(nearest[-3:])))
    assert model.row_prompts(feat) == expected and differs > 5
    recent, _ = untuned("TALLRec", rated, saved, "--prompt_items=3")
    assert len({one.prompts.fingerprint() for one in (whole, recent, model)}) == 3


def test_the_rows_of_a_user_are_computed_apart_where_prompts_show_a_part():
    def unit(**given: Any) -> str:
        return str(Config("BIGRec", "ml-100k", config_dict={"train_sample_size": None, **given}, argv=[])["train_unit"])

    assert unit() == unit(prompt_items=10) == "user"
    assert unit(prompt_items=9) == "row"


@pytest.mark.parametrize("by", ["recent", "similar"])
def test_a_new_process_gives_the_scores_of_the_run(by, command, rated, tmp_path):  # noqa: F811
    words = (*POINTS["RecLoRA"], "--prompt_items=2", f"--prompt_items_by={by}", "--train_sample_size=16")
    done = command("RecLoRA", *words, world=rated)
    assert done.status == 0 and ("item-embeddings" in done.json("RecLoRA", "stages.json")) == (by == "similar")
    program = """
        import sys, json
        from recbole_llm.experiment.trained import config_of, load_trained
        from pathlib import Path
        folder = Path(sys.argv[1])
        trained = load_trained(folder, config_of(folder))
        print(json.dumps(trained.model.predict(trained.rows.test.inter_feat).tolist()))
    """
    again = json.loads(forked_python(program, done.folders["RecLoRA"], cwd=tmp_path).stdout.splitlines()[-1])
    lines = (done.folders["RecLoRA"] / "test_clicks.csv").read_text(encoding="utf-8").splitlines()
    column = lines[0].split(",").index("score")
    np.testing.assert_allclose(sorted(again), sorted(float(line.split(",")[column]) for line in lines[1:]), atol=1e-6)
    assert json.loads((done.folders["RecLoRA"] / "prompt.json").read_text())["max_history"] == 2


def test_wrong_answers_and_gates_of_training_rows_know_the_whole_history(rated, saved):  # noqa: F811
    model, rows = untuned("BIGRec", rated, saved, "--prompt_items=1")
    chosen = TrainingRows.of(cast(BIGRec, model), rows.train, read_examples(model, rows.train))
    assert chosen.histories == model.histories(chosen.readable) and max(map(len, chosen.histories)) > 4
    negatives = draw_negatives(cast(BIGRec, model), chosen, "random", len(model.catalog.titles))
    titles = model.catalog.representative
    for own, history, target in zip(negatives, chosen.histories, chosen.readable["item_id"].tolist(), strict=True):
        known = {int(titles[item]) for item in (*history, target)}
        assert set(own[own > 0].tolist()) == set(np.flatnonzero(model.catalog.rankable).tolist()) - known
