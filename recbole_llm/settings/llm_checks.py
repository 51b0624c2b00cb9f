"""Checks of an LLM run's settings as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from recbole_llm.curriculum import make_curricula
from recbole_llm.errors import InputError
from recbole_llm.grounding.rules import check_grounding
from recbole_llm.llm.settings import TINY, TinyLLMConfig
from recbole_llm.objective.preference_settings import check_preference, compares_histories
from recbole_llm.registry import find_choice
from recbole_llm.semantic_ids.settings import CodeSettings, TwinSettings
from recbole_llm.settings.code_checks import check_codes
from recbole_llm.settings.coreset_checks import check_needs, check_scored_tokens
from recbole_llm.settings.models import ModelFacts
from recbole_llm.settings.prompt_checks import check_prompt_items
from recbole_llm.settings.recommender_checks import check_recommender
from recbole_llm.settings.stage_checks import (
    check_answers,
    check_gamma,
    check_learner,
    check_objective,
    check_on_trie,
    check_teaching,
    check_validation,
    has_rows,
    reads_states,
)
from recbole_llm.settings.training import is_tuned
from recbole_llm.settings.vectors import check_bi_tuning, check_vectors

if TYPE_CHECKING:
    from recbole_llm.coreset import Selector


def check_components(final: Mapping[str, Any]) -> None:
    """Settings of one component that exclude one another; building it finds them."""
    for axis in ("adapter", "coreset", "objective"):
        component = find_choice(axis, final[axis])
        if component is not None and hasattr(component, "from_settings"):
            component.from_settings(final)
    CodeSettings.from_settings(final)
    TwinSettings.from_settings(final)
    if final["llm_path"] == TINY:
        TinyLLMConfig.from_settings(final)
    make_curricula(final)


def check_stages(model: str, facts: ModelFacts, task: str, final: Mapping[str, Any]) -> None:
    """Settings of the stages, as far as they show without the data."""
    has_valid_rows = has_rows(final, "valid")
    if final.get("transform"):
        message = f"{model} reads histories as they are; leave it out, or give it to the other models alone"
        raise InputError("transform", f"{message}: --<model>.transform={final['transform']}", kind="conflict")
    check_answers(model, facts.has_answers, final)
    check_objective(model, facts.has_answers, final)
    check_on_trie(final)
    check_preference(model, facts.has_answers, final, has_valid_rows)
    check_learner(final)
    check_prompt_items(model, facts, task, final)
    check_teaching(model, task, facts.reads_items and not facts.reads_histories, final)
    if facts.reads_histories:
        check_bi_tuning(model, final)
    elif facts.reads_items:
        check_vectors(model, final["dataset"], final, find_choice("adapter", final["adapter"]))
    if facts.has_answers:
        check_grounding(final)
        check_gamma(final, has_valid_rows)
    if facts.names_codes:
        check_codes(model, final, is_twin=facts.names_codes == "twin")
    check_validation(final, has_valid_rows)
    selector = cast("type[Selector] | None", find_choice("coreset", final["coreset"]))
    needs = {need.name for need in selector.needs} if selector is not None and _selects(final) else set()
    if selector is not None and needs:
        check_needs(selector, model, task, final, has_valid_rows)
        check_scored_tokens(needs, task, final)
    adapter = find_choice("adapter", final["adapter"])
    check_recommender(
        final,
        states=reads_states(adapter, final) or "recommender_vectors" in needs or compares_histories(final),
        vectors=facts.reads_vectors or facts.reads_items or (bool(facts.names_codes) and final["sid_source"] == "id"),
        influence="influence" in needs,
    )


def _selects(final: Mapping[str, Any]) -> bool:
    """Whether the run chooses its training rows itself."""
    return is_tuned(final) and final["coreset_file"] is None
