"""Questions of yes or no: pieces against text, what is cut, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.llm.tiny import TinyLLMConfig, train_tokenizer
from recbole_llm.prompt import ClickPromptEncoder, Example, Wording, text_encoder
from recbole_llm.prompt.click import ANSWERS
from tests.families import FAMILIES, make_tokenizer
from tests.refusals import refused

MANY_TOKENS = "Qx#7" * 15  # unknown to the tokenizer
TITLES = [None, "Toy Story (1995)", 'The "Heat"', "Babe", None, "Casino", "Sabrina", MANY_TOKENS]
CATALOG = ItemCatalog(TITLES)
MOVIE = Wording.of_domain("movie")
SHORT = [title for title in TITLES[:-1] if title]
TOKENIZER = train_tokenizer(SHORT, MOVIE.click().texts, TinyLLMConfig(vocab_size=512))


def make(wording: Wording = MOVIE, tokenizer: Any = TOKENIZER, **options: Any) -> ClickPromptEncoder:
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    return ClickPromptEncoder(wording, text_encoder(tokenizer), CATALOG.titles, **{**ids, **options})


def decoded(token_ids: list[int]) -> str:
    return TOKENIZER.decode(token_ids)


rows = st.lists(st.tuples(st.integers(0, len(TITLES) - 1), st.booleans()), max_size=10)
targets = st.sampled_from([item for item, title in enumerate(TITLES) if title])


@settings(max_examples=60)
@given(rows, targets, st.sampled_from(["alpaca", "plain"]))
def test_the_pieces_spell_the_text_with_the_titles_apart_by_label_in_order(history, target, style):
    items, likes = [item for item, _ in history], [liked for _, liked in history]
    builder = make(style=style)
    text = builder.text(Example(items, target, likes))
    assert decoded(builder.prompt(Example(items, target, likes))) == "<s>" + text
    lines = {}
    for name, liked in (("Liked: ", True), ("Not liked: ", False)):
        own = [f'"{TITLES[item]}"' for item, like in history if TITLES[item] and like == liked]
        lines[name] = ", ".join(own) or "none"
        assert f"\n{name}{lines[name]}\n" in text
    assert f'like the movie "{TITLES[target]}"?' in text


def test_an_answer_is_one_token_then_a_full_stop_and_the_end():
    builder = make()
    for label, answer in enumerate(ANSWERS):
        response = builder.response(Example([], liked=bool(label)))
        assert decoded(response) == f"{answer}.</s>" and len(response) == 3
        assert response[0] == builder.answer_token_ids[label] and decoded(response[:1]) == answer


@settings(max_examples=60)
@given(rows.filter(bool), targets, st.integers(0, 60))
def test_a_long_prompt_loses_its_oldest_titles_and_keeps_the_question(history, target, spare):
    items, likes = [item for item, _ in history], [liked for _, liked in history]
    free = make()
    limit = len(free.prompt(Example([], target, []))) + spare
    builder = make(max_prompt_tokens=limit)
    prompt = builder.prompt(Example(items, target, likes))
    assert len(prompt) <= limit and builder.n_shortened == (len(free.prompt(Example(items, target, likes))) > limit)
    kept = [free.prompt(Example(items[start:], target, likes[start:])) for start in range(len(items) + 1)]
    assert prompt == next(whole for whole in kept if len(whole) <= limit)


def test_the_titles_end_is_cut_where_the_question_alone_is_too_long():
    whole = make().prompt(Example([], 7, []))
    cut = make(max_prompt_tokens=len(whole) - 5).prompt(Example([1, 2], 7, [True, False]))
    tail = make()._pieces.fixed[-1]
    assert len(cut) == len(whole) - 5 and cut[-len(tail) :] == tail
    assert cut[: -len(tail)] == whole[: -len(tail) - 5]
    with refused("max_prompt_tokens", "value", "max_prompt_tokens: 20 is too short .* at least \\d+; raise it"):
        make(max_prompt_tokens=20)


def test_slots_stand_where_the_wording_puts_them():
    words = {"item": "dish", "items": "dishes", "verb": "eaten", "click_preamble": "", "click_instruction": ""}
    template = Wording.load({**words, "click_input": "{target}? After {disliked} (bad) and{liked}"})
    builder = make(template, style="plain")
    assert builder.text(Example([1, 3], 5, [True, False])) == '"Casino"? After "Babe" (bad) and"Toy Story (1995)"\n\n'
    assert decoded(builder.prompt(Example([1, 3], 5, [True, False]))) == "<s>" + builder.text(
        Example([1, 3], 5, [True, False])
    )


@pytest.mark.parametrize(
    ("sentence", "message", "kind"),
    [
        ("{liked} {disliked}", "click_input must hold the slot {target} exactly once", "value"),
        ("{liked} {liked} {disliked} {target}", "click_input must hold the slot {liked} exactly once", "value"),
        ("{liked} {disliked} {target} {history}", "click_input has an unknown slot {history}", "unknown"),
    ],
)
def test_a_wording_that_cannot_be_filled_is_named(sentence, message, kind):
    with refused("click_input", kind, message):
        Wording.load({"item": "a", "items": "b", "verb": "c", "click_input": sentence})


def test_an_item_without_title_is_not_shown_and_cannot_be_asked_about():
    builder = make()
    assert builder.prompt(Example([4, 1, 0], 5, [True, True, False])) == builder.prompt(Example([1], 5, [True]))
    with pytest.raises(ValueError, match="item '4' has no title and cannot be asked about"):
        builder.prompt(Example([1], 4, [True]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_that_splits_the_answers_is_refused(family):
    with refused("llm_path", "conflict", "llm_path: its tokenizer needs single tokens .*; choose another LLM"):
        make(tokenizer=make_tokenizer(family))


def test_the_fingerprint_tells_wordings_styles_and_limits_apart():
    other = Wording.load({"item": "movie", "items": "movies", "verb": "watched", "click_preamble": "Hello."})
    builders = [make(), make(style="plain"), make(max_prompt_tokens=200), make(other)]
    assert len({builder.fingerprint() for builder in builders}) == 4
    assert make().fingerprint() == make().fingerprint()
