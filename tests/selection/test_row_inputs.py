"""Inputs are asked for by name: each is of one source, and one stage is shared by all that it is the same for."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from recbole_llm.registry import CORESETS, find_choice
from recbole_llm.selection.provider import Provider, find_input, row_input
from recbole_llm.selection.recommender_inputs import RecommenderVectors
from recbole_llm.selection.row_inputs import PROVIDERS
from recbole_llm.settings.coreset_checks import BY_ADAPTER, OF_NEXT_ITEMS, check_needs
from tests.refusals import refused
from tests.selection.rows import inputs_of


@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_gradient_norms_of_answers_are_the_effort_and_its_stage(make, tokens):
    inputs = inputs_of(*make("GORACS", effort_tokens=tokens))
    np.testing.assert_array_equal(inputs.get("effort"), inputs.llm.effort())
    np.testing.assert_array_equal(inputs.get("gradient_norms"), inputs.get("effort"))
    assert "effort" in inputs.model.stages.used and "gradient-norms" not in inputs.model.stages.used


def test_gradient_norms_of_clicks_are_a_stage_of_their_own(clicks):
    np.testing.assert_array_equal(clicks.get("gradient_norms"), clicks.llm.gradient_norms())
    assert "gradient-norms" in clicks.model.stages.used


def test_difficulty_of_clicks_is_of_the_llm(clicks):
    np.testing.assert_array_equal(clicks.get("grand"), clicks.llm.gradient_norms())
    np.testing.assert_array_equal(clicks.get("el2n"), clicks.llm.choice_errors())
    assert "choice-errors" in clicks.model.stages.used and "grand" not in clicks.model.stages.used
    assert not any(isinstance(provider, RecommenderVectors) for provider in clicks.made.values())


@pytest.mark.parametrize("name", [name for name in CORESETS if name != "none"])
def test_of_clicks_influence_alone_is_refused(clicks, name):
    selector = find_choice("coreset", name)()
    with refused("coreset", "conflict") if name == "dealrec" else nullcontext():
        check_needs(selector, clicks.config["model"], "click", clicks.config, has_valid_rows=True)


@pytest.mark.parametrize("task", ["next-item", "click"])
def test_what_is_checked_before_the_providers_load_is_what_they_provide(make, task):
    config, *_ = make()
    needs = {need.name for name in CORESETS if name != "none" for need in find_choice("coreset", name).needs}
    found = {name: find_input(name, PROVIDERS[task], config) for name in needs}
    assert {name for name, one in found.items() if one is None} == (set(OF_NEXT_ITEMS) if task == "click" else set())
    by_llm = {name for name, one in found.items() if one is not None and one[0] is PROVIDERS[task].llm}
    assert by_llm - {"llm_vectors", "vectors"} == set(BY_ADAPTER[task]) & needs  # vectors are of the untuned LLM


@pytest.mark.parametrize("name", [name for name in CORESETS if name != "none"])
def test_each_input_of_a_selector_is_of_one_source(make, name):
    config, *_ = make()
    for need in find_choice("coreset", name).needs:
        kind, declared = find_input(need.name, PROVIDERS["next-item"], config)
        others = [other for other in PROVIDERS["next-item"] if other is not kind]
        assert callable(getattr(kind, declared.name)) and need.name in {declared.name, *declared.also}
        assert not any(hasattr(other, declared.name) for other in others)


@pytest.mark.parametrize(
    ("task", "vectors", "expected"),
    [
        ("next-item", "recommender", {"vectors": "recommender_vectors", "gradient_norms": "effort", "el2n": "el2n"}),
        ("next-item", "llm", {"vectors": "llm_vectors", "grand": "grand", "labels": "labels"}),
        ("click", "recommender", {"vectors": "recommender_vectors", "el2n": "choice_errors", "influence": None}),
        ("click", "llm", {"vectors": "llm_vectors", "gradient_norms": "gradient_norms", "grand": "gradient_norms"}),
    ],
)
def test_what_stands_for_an_input_is_said_by_its_provider(task, vectors, expected):
    config = {"coreset_vectors": vectors}
    for name, method in expected.items():
        found = find_input(name, PROVIDERS[task], config)
        assert (found and found[1].name) == method


def test_two_providers_of_one_input_are_a_mistake_of_ours():
    class One(Provider):
        @row_input()
        def number(self) -> None: ...

    class Other(Provider):
        @row_input("number")
        def another(self) -> None: ...

    with pytest.raises(ValueError, match="number is provided by One and by Other"):
        find_input("number", (One, Other), {})


def test_a_subclass_takes_over_what_it_declares_and_keeps_the_rest():
    class Base(Provider):
        @row_input("alias", settings=("key",))
        def first(self) -> int:
            return 1

        @row_input()
        def second(self) -> int:
            return 2

    class Derived(Base):
        @row_input()
        def second(self) -> int:
            return 3

        @row_input()
        def alias(self) -> int:
            return 4

    made = Derived()
    values = {name: Derived.find(name, {}).compute(made) for name in ("first", "second", "alias")}
    assert values == {"first": 1, "second": 3, "alias": 4}  # a method of the very name comes first
    assert Base.find("alias", {}).name == "first" and Base.find("third", {}) is None
    assert Derived.declared["first"].settings == ("key",)
