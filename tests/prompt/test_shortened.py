"""Prompts that are too long: the same as by dropping one title after another, at the cost of a few compositions."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.errors import InputError
from recbole_llm.llm.tiny import TinyLLMConfig, train_tokenizer
from recbole_llm.prompt import ClickPromptEncoder, Example, PromptEncoder, TitlePromptEncoder, Wording, text_encoder
from recbole_llm.prompt.codes import CodePromptEncoder, UserCodePrompts, UserSearchPrompts
from recbole_llm.prompt.summary import SummaryPromptEncoder
from tests.families import make_tokenizer

TITLES = [None, "Toy Story (1995)", "Babe", None, 'Say "Hi"', "罗马假日", ",", "A rather long title, of many words: 12"]
CODES = [None, [900], [901, 902, 903], None, [904, 905], [906], [907] * 6, [908, 909]]
WORDS = Wording("movie", "movies", "watched")
TINY = train_tokenizer(list(filter(None, TITLES)), WORDS.click().texts, TinyLLMConfig(vocab_size=512))


def by_chance(text: str) -> list[int]:
    """A text as one to nine tokens whatever its length, so that a shorter text is often more tokens."""
    number = zlib.crc32(text.encode())
    return [1 + ord(letter) for letter in text] if len(text) < 4 else [number] * (1 + number % 9)


ENCODERS = {"tiny": text_encoder(TINY), "llama": text_encoder(make_tokenizer("llama")), "by chance": by_chance}
KINDS: list[tuple[type[PromptEncoder], dict[str, Any]]] = [
    *((TitlePromptEncoder, {"style": style}) for style in ("plain", "list", "lines")),
    (TitlePromptEncoder, {"style": "alpaca", "item_slots": True}),
    (TitlePromptEncoder, {"style": "plain", "candidates": True}),
    (SummaryPromptEncoder, {"style": "plain"}),
    (CodePromptEncoder, {"style": "plain"}),
    (UserCodePrompts, {"style": "plain"}),
    (UserSearchPrompts, {"style": "plain"}),
    (ClickPromptEncoder, {"style": "plain"}),
]


class OneWordClicks(ClickPromptEncoder):
    """Yes and No are single tokens, whatever the tokenizer."""

    def _answer_tokens(self) -> tuple[int, int]:
        return (1, 2)


def make(kind: type[PromptEncoder], encode: Any, **options: Any) -> PromptEncoder:
    kind = OneWordClicks if kind is ClickPromptEncoder else kind
    own = {"codes": CODES, "code_names": {}} if issubclass(kind, CodePromptEncoder) else {}
    return kind(WORDS, encode, TITLES, eos_token_id=0, **own, **options)


def one_by_one(free: PromptEncoder, example: Example, limit: int) -> list[int]:
    """The prompt within a limit, composed anew for each title that is dropped."""
    shown = free.shown(example)
    while len(found := free._compose(shown)) > limit and len(shown.history) > free.least_history:
        shown = replace(shown, history=shown.history[1:], likes=shown.likes and shown.likes[1:])
    if len(found) <= limit:
        return found
    return free._compose(shown, cut=max(len(free._compose(shown, cut=0)) - limit, 0))


rows = st.lists(st.tuples(st.integers(0, len(TITLES) - 1), st.booleans()), max_size=14)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("kind", "options"), KINDS)
@settings(max_examples=40)
@given(row=rows, target=st.sampled_from([1, 2, 7]), share=st.floats(0, 1))
def test_a_shortened_prompt_is_that_of_one_title_less_after_another(kind, options, name, row, target, share):
    likes = [like for _, like in row] if kind is ClickPromptEncoder else None
    candidates = (4, 2) if "candidates" in options else ()
    example = Example([item for item, _ in row], target, likes, candidates=candidates, user=(900, 901))
    free = make(kind, ENCODERS[name], **options)
    if not free.has_prompt(example):
        return
    least, whole = free._least_tokens(), len(free.prompt(example))
    encoder = make(kind, ENCODERS[name], max_prompt_tokens=least + round(share * max(whole - least, 0)), **options)
    limit = encoder.max_prompt_tokens
    try:
        found = encoder.prompt(example)
    except InputError:  # the candidates alone are too long
        assert candidates
        return
    assert found == one_by_one(free, example, limit)
    assert encoder.n_shortened == (whole > limit)


@pytest.mark.parametrize(("kind", "options"), [(TitlePromptEncoder, {}), (ClickPromptEncoder, {})])
def test_each_title_is_composed_a_few_times_however_many_go(monkeypatch, kind, options):
    """Composed anew for every dropped title, titles would come up n² / 2 times."""
    n = 300
    likes = [True, False, False] * (n // 3) if kind is ClickPromptEncoder else None
    encoder, example = make(kind, ENCODERS["tiny"], **options), Example([1, 2, 4] * (n // 3), 1, likes)
    encoder.max_prompt_tokens = limit = len(encoder.prompt(Example([1], 1, likes and [True])))
    composed, slot = [], type(encoder)._slot

    def counted(self, name, items, cut=None):
        composed.extend(items)
        return slot(self, name, items, cut)

    monkeypatch.setattr(type(encoder), "_slot", counted)
    assert len(encoder.prompt(example)) <= limit and len(composed) < 10 * n
