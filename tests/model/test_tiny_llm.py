"""The prompts that the tiny LLM learns to read from: what their answers depend on."""

from __future__ import annotations

from typing import Any

import numpy as np

from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.model.tiny_llm import TinyLLMStage, invent_clicks, invent_titles
from tests.model.test_bigrec import trainer_of

LIMIT = "--max_prompt_tokens"
CATALOG = ItemCatalog(
    [None, "Red Sea", "Dead Sea", "Alps", None, "Ural"],
    attributes=[[], ["water"], ["water"], ["rock"], ["rock"], ["rock"]],
)


def test_an_item_is_liked_as_those_that_share_something_with_it_and_chance_decides_on_the_others():
    invent = invent_clicks(CATALOG, 0, np.random.default_rng(0))
    examples = [invent([1, 3, 2], 5) for _ in range(400)]
    assert all(example.likes[1] == example.liked for example in examples)
    for values in (
        [e.liked for e in examples],
        [e.likes[0] == e.liked for e in examples],
        [e.likes[2] for e in examples],
    ):
        assert 0.4 < np.mean(values) < 0.6


def test_an_item_without_a_title_shares_nothing():
    invent = invent_clicks(CATALOG, 0, np.random.default_rng(0))
    examples = [invent([4], 3) for _ in range(400)]
    assert 0.4 < np.mean([example.likes[0] == example.liked for example in examples]) < 0.6


def test_candidates_hold_the_answer_and_no_item_without_a_title():
    invent = invent_titles(CATALOG, 3, np.random.default_rng(0))
    for _ in range(20):
        listed = invent([1], 5).candidates
        assert len(listed) == 3 and 5 in listed and not {0, 4} & set(listed)


def test_the_longest_prompt_is_told_where_it_is_not_the_usual(gaps, place):
    def stage(*words: str) -> Any:
        model = trainer_of(gaps, place, *words)[0].model
        own = TinyLLMStage(model.config, model.catalog, model.prompt_kind, invent_titles, 10, model.device)
        return own.facts(), own._compose(model.backbone.tokenizer)([1, 2, 4, 5, 6], 7)[0]

    (usual, whole), (same, _), (short, cut) = (stage(*words) for words in ((), (f"{LIMIT}=512",), (f"{LIMIT}=200",)))
    assert len(cut) < len(whole) and short != usual == same and "max_prompt_tokens" not in usual
