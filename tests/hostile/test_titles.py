"""Titles: of any length, script and spelling, equal to special tokens, and what prompts and answers make of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.prompt import Example, TitlePromptEncoder, Wording, text_encoder
from recbole_llm.prompt.titles import clean_answer, clean_title, normalize_title
from tests.families import FAMILIES, make_tokenizer
from tests.hostile.cases import ODD_TEXTS, SPECIAL_TOKENS, outcome, tried

pytestmark = pytest.mark.hostile
STYLES = ("alpaca", "plain", "list")
LIMIT = 300
letters = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
titles = (
    letters
    | st.sampled_from(SPECIAL_TOKENS + ODD_TEXTS)
    | st.tuples(st.sampled_from(SPECIAL_TOKENS + ODD_TEXTS), letters).map(" ".join)
)
LONG = (
    "x" * 100_000,
    "ab " * 33_000,
    "\U0001f600" * 25_000,
    "\u05e9" * 50_000,
    '"' * 100_000,
    "</s>" * 25_000,
    "\n" * 100_000,
)


@cache
def tokenizer(family: str) -> Any:
    return make_tokenizer(family)


def encoder(family: str, catalog: ItemCatalog, style: str, slots: bool = False) -> TitlePromptEncoder:
    of = tokenizer(family)
    return TitlePromptEncoder(
        Wording(item="movie", items="movies", verb="watched"),
        text_encoder(of),
        catalog.titles,
        style=style,
        bos_token_id=of.bos_token_id,
        eos_token_id=of.eos_token_id,
        max_prompt_tokens=LIMIT,
        item_slots=slots,
    )


def catalog_of(own: list[str]) -> ItemCatalog | None:
    found, error = outcome(ItemCatalog, [None, *own])
    assert (error is None) == any(clean_title(title) for title in own)
    assert error is None or (error.key, error.kind) == ("title_field", "data")
    return found


@tried(600)
@given(st.lists(titles, min_size=1, max_size=5), st.sampled_from(FAMILIES), st.sampled_from(STYLES), st.booleans())
def test_titles_stay_themselves_in_prompts_and_answers(own: list[str], family: str, style: str, slots: bool) -> None:
    """No title becomes a special token, ends an answer, or is answered by another title's tokens."""
    catalog = catalog_of(own)
    if catalog is None:
        return
    of, prompts = tokenizer(family), encoder(family, catalog, style, slots)
    items = [item for item, title in enumerate(catalog.titles) if title]
    special = set(of.all_special_ids)
    prompt = prompts.prompt(Example(history=items, target=items[0]))
    assert len(prompt) <= LIMIT and not special & set(prompt[1:])
    assert {-token for token in prompt if token < 0} <= (set(items) if slots else set())
    responses = [prompts.item_response(item) if title else None for item, title in enumerate(catalog.titles)]
    for item in items:
        response = responses[item]
        assert response[-1] == of.eos_token_id and not special & set(response[:-1])
        text = of.decode(response[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert clean_answer(text) == catalog.titles[item]
        assert catalog.lookup(clean_answer(text)) == catalog.representative[item]
    trie = TitleTrie([response[:-1] if response else None for response in responses], of.eos_token_id)
    for item in items:
        assert item in trie.items([*responses[item][:-1], of.eos_token_id])


@tried(300)
@given(st.lists(titles | st.none(), min_size=1, max_size=8))
def test_a_catalogue_knows_its_titles_and_no_others(own: list[str | None]) -> None:
    found, error = outcome(ItemCatalog, [None, *own])
    cleaned = [clean_title(title or "") or None for title in own]
    if error is not None:
        assert not any(cleaned)
        return
    assert found.titles == [None, *cleaned]
    for item, title in enumerate(found.titles):
        first = found.titles.index(title) if title else 0
        assert found.representative[item] == first and found.rankable[item] == (bool(title) and item == first)
    assert found.n_duplicates == len([t for t in cleaned if t]) - len({t for t in cleaned if t})


@tried(400)
@given(titles)
def test_cleaning_twice_changes_nothing(title: str) -> None:
    once = clean_title(title)
    assert clean_title(once) == once and "\n" not in once and once == once.strip()
    assert normalize_title(normalize_title(title)) == normalize_title(title)
    assert clean_answer(f'"{once}"') == once


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("title", LONG, ids=lambda title: repr(title[:4]))
def test_a_title_of_a_hundred_thousand_characters_keeps_within_the_prompt(family: str, title: str) -> None:
    catalog = catalog_of([title, "Babe"])
    assert catalog is not None
    prompts = encoder(family, catalog, "plain")
    assert len(prompts.prompt(Example(history=[2, 1], target=2))) <= LIMIT
    alone = Example(history=[1] * 3, target=2)
    assert prompts.has_prompt(alone) == (catalog.titles[1] is not None)  # of line breaks alone nothing is left
    assert not prompts.has_prompt(alone) or len(prompts.prompt(alone)) <= LIMIT


@pytest.mark.parametrize("make", [lambda title: ["Babe", title], lambda title: [title]])
@pytest.mark.parametrize("title", LONG, ids=lambda title: repr(title[:4]))
def test_a_message_about_a_long_title_is_short(make: Callable[[str], list[str]], title: str) -> None:
    from recbole_llm.errors import InputError

    error = InputError(
        "histories", f"'{make(title)[-1]}': no item has this id or title; did you mean Babe?", kind="unknown"
    )
    assert len(str(error)) <= 2000 and str(error).endswith("did you mean Babe?") and str(error).isprintable()


def test_titles_that_look_alike_are_different_items() -> None:
    """NFC and NFD, and letters of other scripts, are kept apart as they stand in the file."""
    own = ["caf\u00e9", "cafe\u0301", "A", "\u0410", "\u0391", "a", "fi", "\ufb01"]
    catalog = ItemCatalog([None, *own])
    assert catalog.rankable[1:].all() and [catalog.lookup(title) for title in own] == list(range(1, 9))
    assert np.unique(catalog.representative).size == 9
