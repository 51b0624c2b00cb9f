"""Which items of a history prompts show: the same prompts as of histories that were cut before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.llm.tiny import TinyLLMConfig, train_tokenizer
from recbole_llm.prompt import (
    ClickPromptEncoder,
    Example,
    PromptEncoder,
    TitlePromptEncoder,
    Wording,
    text_encoder,
)
from recbole_llm.prompt.codes import CodePromptEncoder
from recbole_llm.prompt.shown import ShownItems
from recbole_llm.prompt.summary import SummaryPromptEncoder

TITLES = [None, "Toy Story", "Babe", None, "Heat", "Casino"]
CODES = [None, [900, 901], [902, 903], None, [900, 903], [902, 901]]
NAMES = {900: "<a_0>", 901: "<b_0>", 902: "<a_1>", 903: "<b_1>"}
VECTORS = np.array([[0, 0], [1, 0], [1, 1], [1, 0], [0, 1], [-1, 0.5]])
KINDS = (TitlePromptEncoder, SummaryPromptEncoder, CodePromptEncoder, ClickPromptEncoder)
WORDS = Wording("movie", "movies", "watched")
TOKENIZER = train_tokenizer(list(filter(None, TITLES)), WORDS.click().texts, TinyLLMConfig(vocab_size=512))


def make(kind: type[PromptEncoder], **options: Any) -> PromptEncoder:
    own = {"codes": CODES, "code_names": NAMES} if kind is CodePromptEncoder else {}
    return kind(WORDS, text_encoder(TOKENIZER), TITLES, eos_token_id=0, style="plain", **own, **options)


def shown_by_hand(example: Example, count: int, by_similarity: bool) -> Example:
    """The newest, or the most similar, titled items of an example."""
    titled = [index for index, item in enumerate(example.history) if TITLES[item]]
    if by_similarity:
        directions = VECTORS / np.maximum(np.linalg.norm(VECTORS, axis=1, keepdims=True), 1e-12)
        cosines = (directions @ directions[example.target]).round(9)
        titled.sort(key=lambda index: (cosines[example.history[index]], index))
    kept = sorted(titled[max(len(titled) - count, 0) :])
    likes = None if example.likes is None else [example.likes[index] for index in kept]
    return replace(example, history=[example.history[index] for index in kept], likes=likes)


rows = st.lists(st.tuples(st.integers(1, len(TITLES) - 1), st.booleans()), max_size=9)


@pytest.mark.parametrize("kind", KINDS)
@given(row=rows, target=st.sampled_from([1, 2, 4, 5]), count=st.integers(1, 10), by_similarity=st.booleans())
def test_a_prompt_is_that_of_the_items_chosen_by_hand(kind, row, target, count, by_similarity):
    likes = [like for _, like in row] if kind is ClickPromptEncoder else None
    example = Example([item for item, _ in row], target, likes)
    encoder = make(kind, shown_items=ShownItems(count, (lambda: VECTORS) if by_similarity else None))
    free = make(kind)
    assert encoder.has_prompt(example) == free.has_prompt(example)
    if not free.has_prompt(example):
        return
    by_hand = shown_by_hand(example, count, by_similarity)
    shown = encoder.shown(example)
    assert (shown.history, shown.likes) == (by_hand.history, by_hand.likes)
    assert encoder.prompt(example) == free.prompt(by_hand) and encoder.text(example) == free.text(by_hand)
    assert len(by_hand.history) <= count
    if count >= sum(TITLES[item] is not None for item, _ in row):
        assert encoder.prompt(example) == free.prompt(example)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_tells_what_is_shown(kind):
    similar = [ShownItems(3, lambda: VECTORS, source) for source in ("titles", "ids")]
    choices = [None, ShownItems(2), ShownItems(3), *similar]
    assert len({make(kind, shown_items=choice).fingerprint() for choice in choices}) == len(choices)
    assert "shown" not in make(kind).facts()


def test_a_prompt_that_is_still_too_long_loses_its_oldest_shown_titles():
    example = Example([1, 2, 4, 5], 1)
    free, fewer = make(TitlePromptEncoder), ShownItems(2)
    limit = len(free.prompt(Example([4, 5], 1))) - 1
    encoder = make(TitlePromptEncoder, shown_items=fewer, max_prompt_tokens=limit)
    assert encoder.prompt(example) == free.prompt(Example([5], 1)) and encoder.n_shortened == 1
