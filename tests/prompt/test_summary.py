"""Prompts that ask for a user in one token: numbered lines, of which the oldest go where there is no room."""

from __future__ import annotations

import pytest

from recbole_llm.prompt import Example, Wording
from recbole_llm.prompt.summary import SummaryPromptEncoder
from tests.refusals import refused

TITLES = [None, "Toy Story, Comedy", "Babe", None, "Heat"]


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def encoder(limit: int | None = None, style: str = "plain") -> SummaryPromptEncoder:
    words = Wording("movie", "movies", "watched")
    return SummaryPromptEncoder(words, letters, TITLES, eos_token_id=0, style=style, max_prompt_tokens=limit)


@pytest.mark.parametrize("style", ["plain", "alpaca"])
def test_the_tokens_are_those_of_the_text(style):
    prompts = encoder(style=style)
    example = Example([1, 3, 4, 1], 0)
    text = prompts.text(example)
    assert "oldest first:\n1. Toy Story, Comedy\n2. Heat\n3. Toy Story, Comedy\n" in text
    assert prompts.prompt(example) == letters(text)


def test_the_oldest_lines_go_first_and_the_rest_is_numbered_anew():
    whole = encoder().prompt(Example([1, 2, 4], 0))
    shorter = encoder(len(whole) - 1).prompt(Example([1, 2, 4], 0))
    assert shorter == encoder().prompt(Example([2, 4], 0))
    least = len(encoder().prompt(Example([4], 0)))
    cut = encoder(least - 2).prompt(Example([1, 2, 4], 0))
    assert "".join(map(chr, cut)) == encoder().text(Example([4], 0)).replace("Heat", "He")


def test_there_is_no_prompt_without_a_title_and_no_list_of_candidates():
    assert not encoder().has_prompt(Example([3, 0], 1)) and encoder().has_prompt(Example([3, 4], 1))
    with pytest.raises(ValueError, match="no candidates"):
        SummaryPromptEncoder.make_layout(Wording("movie", "movies", "watched"), "plain", candidates=True)
    with refused("max_prompt_tokens", "value"):
        encoder(20)
