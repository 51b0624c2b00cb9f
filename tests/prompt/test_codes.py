"""Prompts of codes: which tokens, that nothing is left unfilled, and what goes where a prompt is too long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recbole_llm.prompt import Example, Wording
from recbole_llm.prompt.codes import TASKS, CodePromptEncoder, UserCodePrompts, UserSearchPrompts
from tests.refusals import refused

EOS = 0
TITLES = [None, "Toy Story", "Babe", None, 'The "Heat"']
CODES = [None, [900, 910], [900, 911], None, [901, 910]]
NAMES = {950: "[a_0]", 951: "[a_1]", 960: "[b_0]", 900: "<a_0>", 901: "<a_1>", 910: "<b_0>", 911: "<b_1>"}
WORDS = Wording("movie", "movies", "watched")


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def make(kind: type[CodePromptEncoder] = CodePromptEncoder, wording: Wording = WORDS, **options) -> CodePromptEncoder:
    options = {"style": "plain", "eos_token_id": EOS, **options}
    return kind(wording, letters, TITLES, codes=CODES, code_names=NAMES, **options)


def test_a_history_of_codes_stands_in_the_prompt_without_blanks():
    encoder = make(bos_token_id=7)
    prompt = encoder.prompt(Example(history=[1, 3, 4, 0, 2], target=2))
    start = prompt.index(900)
    assert prompt[start : start + 6] == [900, 910, 901, 910, 900, 911]  # the item without a code is not shown
    assert prompt[0] == 7 and prompt[:start] == encoder.common_prefix and prompt[start + 6 :] == letters("\n\n")
    assert encoder.response(Example(history=[1], target=4)) == [901, 910, EOS]


def test_no_prompt_depends_on_the_target():
    encoder = make()
    assert encoder.prompt(Example([1, 2], target=1)) == encoder.prompt(Example([1, 2], target=4))


def test_of_a_history_that_is_too_long_the_newest_codes_stay():
    whole = make().prompt(Example([1, 2, 4]))
    encoder = make(max_prompt_tokens=len(whole) - 1)
    assert encoder.prompt(Example([1, 2, 4])) == make().prompt(Example([2, 4]))
    assert encoder.fits(Example([2, 4])) and not encoder.fits(Example([1, 2, 4]))
    with refused("max_prompt_tokens", "value"):
        make(max_prompt_tokens=len(make().prompt(Example([4]))) - 1)


def test_rows_without_a_code_have_no_prompt_or_no_response():
    encoder = make()
    assert not encoder.has_prompt(Example([0, 3])) and encoder.has_prompt(Example([3, 1]))
    assert encoder.has_response(Example([1], target=2)) and not encoder.has_response(Example([1], target=3))
    with pytest.raises(ValueError, match="no code"):
        encoder.prompt(Example([3]))


def test_tasks_about_one_item():
    to_title, to_code = (make(TASKS[name]) for name in ("item2text", "text2item"))
    example = Example(history=(), target=4)
    prompt = to_title.prompt(example)
    assert [token for token in prompt if token >= 900] == [901, 910]
    assert to_title.response(example) == [*letters('"The "Heat""'), EOS]
    assert 'The "Heat"' in "".join(map(chr, to_code.prompt(example))) and max(to_code.prompt(example)) < 900
    assert to_code.response(example) == [901, 910, EOS]
    assert not to_title.has_prompt(Example((), target=3)) and not to_code.has_prompt(Example((), target=3))


def test_a_title_that_is_too_long_loses_its_end():
    whole = make(TASKS["text2item"]).prompt(Example((), target=4))
    cut = make(TASKS["text2item"], max_prompt_tokens=len(whole) - 3).prompt(Example((), target=4))
    kept = "".join(map(chr, cut))
    assert len(cut) == len(whole) - 3 and kept.endswith('The "Hea\n\n')


@pytest.mark.parametrize("style", ["alpaca", "plain"])
@pytest.mark.parametrize("kind", [CodePromptEncoder, UserCodePrompts, UserSearchPrompts, *TASKS.values()])
def test_no_brace_is_left_in_any_text(kind, style):
    encoder = make(kind, style=style)
    text = encoder.text(Example(history=[1, 2], target=4, user=[950]))
    assert "{" not in text and "}" not in text and "movie" in text
    assert encoder.facts() == make(kind, style=style).facts() != make(style=style, wording=replace(WORDS, item="film"))


def test_codes_that_change_are_read_anew():
    codes = list(CODES)
    encoder = CodePromptEncoder(WORDS, letters, TITLES, codes=codes, code_names=NAMES, eos_token_id=EOS)
    codes[1] = [901, 911]
    assert encoder.response(Example([2], target=1)) == [901, 911, EOS]


def test_candidates_are_refused():
    with pytest.raises(ValueError, match="candidates"):
        make(candidates=True)


def test_a_users_code_stands_before_the_history_and_takes_room():
    example = Example(history=[1, 2], target=4, user=(950, 960))
    encoder = make(UserCodePrompts)
    prompt = encoder.prompt(example)
    assert [token for token in prompt if token >= 900] == [950, 960, 900, 910, 900, 911]
    short = make(UserCodePrompts, max_prompt_tokens=len(prompt) - 1).prompt(example)
    assert [token for token in short if token >= 900] == [950, 960, 900, 911]
    assert encoder.response(example) == [901, 910, EOS]


def test_a_search_for_users_names_the_item_and_others_who_took_it():
    encoder = make(UserSearchPrompts)
    example = Example(history=(), target=2, user=(950, 960, 951, 960))
    assert [token for token in encoder.prompt(example) if token >= 900] == [900, 911, 950, 960, 951, 960]
    assert encoder.user_response((951, 961)) == [951, 961, EOS]
    assert not encoder.has_prompt(Example(history=(), target=2)) and not encoder.has_prompt(Example((), target=3))
