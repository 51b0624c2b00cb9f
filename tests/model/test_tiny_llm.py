"""The prompts that the tiny LLM learns to read from: what their answers depend on."""

from __future__ import annotations

import numpy as np

from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.model.tiny_llm import invent_clicks, invent_titles

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
