"""Inputs are asked for by name: each is of one source, and one stage is shared by all that it is the same for."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from recbole_llm.errors import InputError
from recbole_llm.registry import CORESETS, find_choice
from recbole_llm.selection.row_inputs import check_needs, own_name
from tests.selection.rows import inputs_of


@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_gradient_norms_of_answers_are_the_effort_and_its_stage(make, tokens):
    inputs = inputs_of(*make("GORACS", effort_tokens=tokens))
    np.testing.assert_array_equal(inputs.llm.gradient_norms(), inputs.llm.effort())
    np.testing.assert_array_equal(inputs.get("gradient_norms"), inputs.get("effort"))
    assert "effort" in inputs.model.stages.used and "gradient-norms" not in inputs.model.stages.used


def test_gradient_norms_of_clicks_are_a_stage_of_their_own(clicks):
    np.testing.assert_array_equal(clicks.get("gradient_norms"), clicks.llm.gradient_norms())
    assert "gradient-norms" in clicks.model.stages.used


def test_difficulty_of_clicks_is_of_the_llm(clicks):
    np.testing.assert_array_equal(clicks.get("grand"), clicks.llm.gradient_norms())
    np.testing.assert_array_equal(clicks.get("el2n"), clicks.llm.choice_errors())
    assert "choice-errors" in clicks.model.stages.used and "grand" not in clicks.model.stages.used
    assert "recommender" not in vars(clicks)


@pytest.mark.parametrize("name", [name for name in CORESETS if name != "none"])
def test_of_clicks_influence_alone_is_refused(clicks, name):
    selector = find_choice("coreset", name)()
    with (
        pytest.raises(InputError, match="dealrec goes by influence on .* next items")
        if name == "dealrec"
        else nullcontext()
    ):
        check_needs(selector, clicks.config, clicks.pool.valid_data)


@pytest.mark.parametrize("name", [name for name in CORESETS if name != "none"])
def test_each_input_of_a_selector_is_of_one_source(make, name):
    inputs = inputs_of(*make())
    sources = (inputs.recommender, inputs.llm, inputs.text, inputs.data)
    for need in find_choice("coreset", name).needs:
        own = own_name(need.name, inputs.config)
        assert [source for source in sources if callable(getattr(source, own, None))] == [inputs._source(own)]
