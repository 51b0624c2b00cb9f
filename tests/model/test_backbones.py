"""How long a prompt may be: as long as is asked for, where it and an answer fit into the LLM's positions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.errors import InputError
from recbole_llm.model.backbones import prompt_limit
from recbole_llm.model.rows import RowReader
from tests.refusals import refused

SIZES = st.integers(1, 60)


def backbone(positions: int | None) -> Any:
    config = SimpleNamespace(max_position_embeddings=positions)
    return SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config)))


@given(SIZES, SIZES, SIZES, SIZES)
def test_a_prompt_is_as_long_as_fits_before_the_answer(positions, wanted, answer, free_answer):
    try:
        limit = prompt_limit(backbone(positions), wanted, answer, free_answer)
    except InputError as error:
        assert answer >= positions and error.kind == "conflict"
        assert error.key == ("max_new_tokens" if answer <= free_answer else "llm_path")
    else:
        assert 1 <= limit <= wanted and limit + answer <= positions
        assert limit == wanted or limit + answer == positions


@given(SIZES, SIZES)
def test_an_llm_that_tells_no_positions_takes_any_prompt(wanted, answer):
    assert prompt_limit(backbone(None), wanted, answer, answer) == wanted


def test_an_answer_without_a_prompt_is_refused_by_what_makes_it_long():
    with refused("max_new_tokens", "conflict", "answers may take 512 tokens, and the LLM has 512 positions"):
        prompt_limit(backbone(512), 100, 512, 512)
    with refused("llm_path", "conflict", "the longest title has 512 tokens, and the LLM has 512 positions"):
        prompt_limit(backbone(512), 100, 512, 64)


def test_prompts_that_are_cut_are_told_of(caplog: pytest.LogCaptureFixture):
    assert prompt_limit(backbone(512), 500, 20, 20) == 492
    assert "Prompts are cut to 492 tokens: the LLM has 512 positions." in caplog.text


@given(st.none() | st.integers(20, 60), st.integers(1, 18), st.lists(st.integers(3, 9), max_size=50))
def test_an_answer_is_cut_where_positions_end_and_keeps_its_end(positions, n_prompt, tokens):
    reader: Any = SimpleNamespace(backbone=backbone(positions))
    prompt, answer = [0] * n_prompt, [*tokens, 2]
    found = RowReader.fitted(reader, prompt, answer)
    inputs = len(prompt + answer) - 1  # nothing follows EOS, so it takes no position
    assert found[-1] == 2 and found[:-1] == tokens[: len(found) - 1]
    assert len(prompt + found) - 1 == (inputs if positions is None else min(inputs, positions))
