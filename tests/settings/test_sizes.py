"""Sizes: 0, -1, huge and next to their limits, of every integer that can be set; decided from settings alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.declare import LARGEST, Key
from recbole_llm.errors import InputError
from recbole_llm.settings.check import check_resolved
from recbole_llm.settings.declarations import classic_keys, llm_keys, model_keys
from recbole_llm.settings.defaults import COMMAND_KEYS, known_keys
from recbole_llm.settings.resolve import resolve

MODELS = ("BIGRec", "SOFT", "iLoRA", "RecLoRA", "MoSARA", "SemID", "TTDS", "TALLRec", "LLMEmb", "Laser", "LMDH", "SAR")
MODELS += ("SOLID", "SPRec", "SDPO", "DEALRec", "GORACS", "Pop", "SASRec", "BPR")
# How often something is done, until which it may end by itself: time and no memory.
REPEATED = (
    *("epochs", "curriculum_epochs", "fixed_epochs", "laser_fixed_epochs", "sar_warmup_epochs", "semantic_epochs"),
    *("sid_epochs", "eval_step", "stopping_step", "refresh_every", "refresh_steps", "scft_steps", "influence_steps"),
    *("history_updates", "fdmat_max_exchanges", "goracs_max_exchanges"),
)
# At most so many of what there is: rows, items, letters, ranks of a matrix, tokens of a pass.
AT_MOST = (
    *("train_sample_size", "valid_sample_size", "test_sample_size", "distance_rows", "sd_rows", "history_rows"),
    *("rerank_rows", "pref_round_rows", "fdmat_n_targets", "qdit_n_targets", "goracs_pool_size"),
    *("goracs_n_candidates", "d2_pruning_n_neighbours", "recranker_n_clusters", "tf_dcon_n_clusters"),
    *("rat_align_items", "field_max_chars", "sara_budget", "train_batch_size", "eval_batch_size"),
    *("micro_batch_tokens", "generation_batch_tokens"),
)


@cache
def integers() -> dict[str, Key]:
    """What takes integers, by name."""
    declared = {**classic_keys(), **model_keys(), **llm_keys()}
    return {name: key for name, key in declared.items() if int in key.types and not key.setting.share}


def test_every_size_that_takes_memory_has_a_limit():
    """A new setting is given one, or is listed above."""
    without = {name for name, key in integers().items() if key.setting.high is None and key.setting.below is None}
    assert without == {*REPEATED, *AT_MOST}


def test_limits_leave_the_defaults_alone():
    for name, key in integers().items():
        if isinstance(key.default, int | list):
            assert key.accepts(key.default), name


def values_of(key: Key) -> st.SearchStrategy[int]:
    near = [limit + step for limit in (key.setting.low, key.setting.high) if limit is not None for step in (-1, 0, 1)]
    return st.sampled_from([0, -1, 10**9, 2**31, LARGEST, LARGEST + 1, 10**30, *map(int, near)])


def is_allowed(key: Key, value: int) -> bool:
    """By the declaration, told without the code that checks it."""
    low, high = key.setting.low, key.setting.high
    return (low is None or value >= low) and (high is None or value <= high) and abs(value) <= LARGEST


@cache
def names_of(model: str) -> list[str]:
    return sorted(set(known_keys(model, "ml-100k")) & set(integers()) - set(COMMAND_KEYS))


@settings(max_examples=100)
@given(st.data(), st.sampled_from(MODELS), st.booleans())
def test_an_integer_is_taken_or_refused_in_a_line_that_names_it(data: st.DataObject, model: str, listed: bool) -> None:
    name = data.draw(st.sampled_from(names_of(model)))
    key = integers()[name]
    value = data.draw(values_of(key))
    given_value: Any = [value] if listed and list in key.types else value
    try:
        found = resolve(model, "ml-100k", {name: given_value})
        check_resolved([found])
    except InputError as error:
        assert "\n" not in str(error)
        if not is_allowed(key, value):
            assert (error.key, error.kind) == (name, "value") and str(value)[:20] in str(error)
        return
    assert is_allowed(key, value) and found[name] == given_value


@pytest.mark.parametrize("name", ["MAX_ITEM_LIST_LENGTH", "num_beams", "topk", "lora_r", "max_new_tokens", "pca_dim"])
def test_a_billion_is_refused(name):
    with pytest.raises(InputError, match=f"{name}: .*give an integer >= 1 and <= ") as found:
        integers()[name].check(10**9)
    assert found.value.kind == "value"
