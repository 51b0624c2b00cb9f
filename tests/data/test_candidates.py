"""Candidates: what is drawn, that it depends on the row and the seed alone, and how a prompt lists it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction
from scipy.stats import chisquare

from recbole_llm.data import candidates
from recbole_llm.data.candidates import Candidates, CandidatesStage, draw_candidates
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.prompt import Example, TitlePromptEncoder, Wording, text_encoder
from recbole_llm.prompt.titles import normalize_title
from tests.families import FAMILIES, make_tokenizer
from tests.processes import forked_python
from tests.refusals import refused

ROOT = Path(__file__).parents[2]
# Items 3 and 5 share a title but for its case, 4 and 9 to the letter; 6 and 7 have none.
TITLES = [None, "Toy Story", "Babe", "Heat", "Sabrina", "HEAT ", None, " ", "Fargo", "Sabrina", "Big", "Speed"]
CATALOG = ItemCatalog(TITLES)
TITLED = [item for item, title in enumerate(CATALOG.titles) if title]


def draw(target: int, history: list[int], n: int, user: int = 1, seed: int = 0) -> list[int]:
    return draw_candidates(np.array([[user, target]]), [history], CATALOG, n, seed)[0].tolist()


@given(
    target=st.sampled_from(TITLED),
    history=st.lists(st.integers(1, len(TITLES) - 1), max_size=8),
    n=st.integers(2, 12),
    seed=st.integers(0, 2**60),
)
@settings(max_examples=60)
def test_the_target_among_distinct_titles_outside_the_history(target, history, n, seed):
    titles = [normalize_title(title or "") for title in TITLES]
    free = {titles[item] for item in TITLED} - {titles[item] for item in history} - {titles[target]}
    if not free:
        with refused("candidates", "data", r"candidates: row 0 \(target '\d+'\) has no other title to choose from"):
            draw(target, history, n, seed=seed)
        return
    drawn = draw(target, history, n, seed=seed)
    listed = [item for item in drawn if item]
    assert drawn == listed + [0] * (n - len(listed)) and len(listed) == min(n, 1 + len(free))
    assert listed.count(target) == 1
    negatives = [titles[item] for item in listed if item != target]
    assert len(set(negatives)) == len(negatives) and set(negatives) <= free


def test_places_and_negatives_are_uniform():
    users = np.arange(1, 4001)
    pairs = np.stack([users, np.full(len(users), 2)], axis=1)
    drawn = draw_candidates(pairs, [[1, 8]] * len(users), CATALOG, 4, seed=7)
    places = np.nonzero(drawn == 2)[1]
    assert chisquare(np.bincount(places, minlength=4)).pvalue > 0.01
    negatives, counts = np.unique(drawn[drawn != 2], return_counts=True)
    assert negatives.tolist() == [3, 4, 10, 11]  # the lowest id stands for a title
    assert chisquare(counts).pvalue > 0.01


def test_a_row_is_drawn_by_itself():
    """Neither the other rows nor their order decide, so a sample of rows has the candidates of the whole."""
    pairs, histories = np.array([[1, 2], [2, 3], [3, 2]]), [[1], [1, 8], [1]]
    drawn = draw_candidates(pairs, histories, CATALOG, 4, seed=3)
    again = draw_candidates(pairs[::-1], histories[::-1], CATALOG, 4, seed=3)
    assert np.array_equal(drawn[::-1], again)
    assert [draw(2, [1], 4, user=3, seed=3)] == drawn[2:].tolist()
    others = [draw(2, [1], 4, user, seed) for user in range(1, 6) for seed in range(5)]
    assert len({tuple(listed) for listed in others}) > 20


def test_another_process_draws_the_same():
    code = f"""
        import hashlib, numpy as np
        from recbole_llm.data.candidates import draw_candidates
        from recbole_llm.data.catalog import ItemCatalog
        pairs = np.stack([np.arange(1, 51), np.full(50, 2)], axis=1)
        drawn = draw_candidates(pairs, [[1, 8]] * 50, ItemCatalog({TITLES}), 4, seed=7)
        print(hash("a"), hashlib.sha256(drawn.tobytes()).hexdigest())
    """
    done = forked_python(code)
    pairs = np.stack([np.arange(1, 51), np.full(50, 2)], axis=1)
    here = draw_candidates(pairs, [[1, 8]] * 50, CATALOG, 4, seed=7)
    seed, found = done.stdout.split()[-2:]
    assert found == hashlib.sha256(here.tobytes()).hexdigest()
    assert seed != str(hash("a")) or "PYTHONHASHSEED" in os.environ  # so that no set has the order of this process


def test_a_target_without_a_title_has_no_candidates():
    assert draw(6, [1], 4) == [0, 0, 0, 0]


def test_rows_are_found_by_their_number():
    candidates = Candidates(np.array([2, 5, 9]), np.array([[1, 2], [3, 4], [8, 10]]))
    assert candidates.of(Interaction({"sample_id": torch.tensor([9, 2])})).tolist() == [[8, 10], [1, 2]]
    for missing in (3, 10):
        with pytest.raises(ValueError, match=f"no candidates were drawn for row {missing}"):
            candidates.of(Interaction({"sample_id": torch.tensor([2, missing])}))


# ---- prompts


def make_builder(family: str = "llama", **more: object) -> TitlePromptEncoder:
    tokenizer = make_tokenizer(family)
    wording = Wording(item="movie", items="movies", verb="watched")
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return TitlePromptEncoder(
        wording, text_encoder(tokenizer), CATALOG.titles, **special, **{"candidates": True, **more}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_stand_between_history_and_response(family):
    prompt = make_builder(family).prompt(Example([1, 6, 2], candidates=[8, 3, 0]))
    text = make_tokenizer(family).decode(prompt, skip_special_tokens=True)
    assert text.endswith(
        '### Input:\nSo far this user has watched these movies: "Toy Story", "Babe"\n'
        'The new movie is one of these movies: "Fargo", "Heat"\n\n### Response:\n'
    )


def test_a_domain_may_have_words_of_its_own():
    words = {"item": "dish", "items": "dishes", "verb": "cooked", "input": "{history} were {verb}."}
    wording = Wording.load({**words, "candidates": "Among {candidates}, which {item} is next?"})
    layout = wording.next_item("plain", candidates=True)
    assert layout.fill({"history": ["Soup"], "candidates": ["Bread", "Pie"]}).endswith(
        '"Soup" were cooked.\nAmong "Bread", "Pie", which dish is next?\n\n'
    )
    assert "Among" not in wording.next_item("plain").fill({"history": ["Soup"]})
    for wrong, kind in (
        ("", "value"),
        ("{candidates} {candidates}", "value"),
        ("Choose {history} {candidates}", "unknown"),
    ):
        with refused("candidates", kind):
            Wording.load({**words, "candidates": wrong})


def test_item_slots_stand_behind_candidates_too():
    prompt = make_builder(item_slots=True).prompt(Example([1, 2], candidates=[8, 3]))
    assert [token for token in prompt if token < 0] == [-1, -2, -8, -3]


@pytest.mark.parametrize("item_slots", [False, True])
def test_a_long_prompt_loses_its_oldest_items_and_no_candidate(item_slots):
    free = make_builder(item_slots=item_slots)
    history, candidates = [1, 2, 3, 8], [10, 4, 11]
    example = Example(history, candidates=candidates)
    newest = [free.prompt(Example(history[start:], candidates=candidates)) for start in range(4)]
    for limit in range(len(newest[-1]), len(newest[0]) + 1):
        kept = next(prompt for prompt in newest if len(prompt) <= limit)
        assert make_builder(item_slots=item_slots, max_prompt_tokens=limit).prompt(example) == kept
    least = len(newest[-1]) - len(make_tokenizer("llama").encode('"Fargo"', add_special_tokens=False)) - item_slots + 1
    short = make_builder(item_slots=item_slots, max_prompt_tokens=least)
    assert len(short.prompt(example)) == least
    assert short.n_prompts == short.n_shortened == 1
    short = make_builder(item_slots=item_slots, max_prompt_tokens=least - 1)
    message = f"max_prompt_tokens: {least - 1} is too short for a prompt with its candidates, .* at least {least}"
    for call in (lambda: short.prompt(example), lambda: short.check_candidates(candidates)):
        with refused("max_prompt_tokens", "value", message):
            call()
    make_builder(item_slots=item_slots, max_prompt_tokens=least).check_candidates(candidates)


def test_candidates_belong_to_a_layout_that_lists_them():
    without, listing = make_builder(candidates=False), make_builder()
    with pytest.raises(ValueError, match="where the layout has a slot for them"):
        without.prompt(Example([2], candidates=[3, 4]))
    with pytest.raises(ValueError, match="where the layout has a slot for them"):
        listing.prompt(Example([2]))
    assert without.fingerprint() != listing.fingerprint()


def test_candidates_are_drawn_by_titles(monkeypatch):
    monkeypatch.setattr(candidates, "rows_digest", str)
    rows: Any = "rows"
    others = ItemCatalog([title and title + "!" for title in TITLES])
    one, other = (CandidatesStage(rows, "test", own, 4, 1).facts() for own in (CATALOG, others))
    assert one != other
