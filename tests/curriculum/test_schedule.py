"""What each value of ``curriculum`` weighs in each epoch, and which targets need computing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.curriculum import (
    DISTILLED,
    REAL,
    AdaptiveCurriculum,
    FixedCurriculum,
    SelfDistillation,
    adaptive_weight,
    target_weights,
)
from recbole_llm.registry import find_choice
from tests.refusals import refused


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (1.0, {DISTILLED: 1.0}),
        (0.0, {REAL: 1.0}),
        (9.9e-13, {REAL: 1.0}),
        (4.24835425529e-18, {REAL: 1.0}),
        (1e-12, {REAL: 1 - 1e-12, DISTILLED: 1e-12}),
        (0.25, {REAL: 0.75, DISTILLED: 0.25}),
        (1 - 2**-53, {REAL: 2**-53, DISTILLED: 1 - 2**-53}),
    ],
)
def test_a_target_that_carries_no_weight_is_left_out(weight, expected):
    assert target_weights(weight) == expected


@given(st.floats(0, 1))
def test_weights_of_the_targets_sum_to_1(weight):
    weights = target_weights(weight)
    assert sum(weights.values()) == 1 and all(weights.values())
    assert abs(weights.get(DISTILLED, 0) - weight) < 1e-12


@given(st.floats(0, 1), st.lists(st.floats(0, 100)))
def test_a_fixed_weight_does_not_depend_on_distances(weight, distances):
    curriculum = FixedCurriculum.from_value(f"fixed:{weight!r}", {})
    assert curriculum.weight(distances) == weight and not curriculum.uses_distance
    assert curriculum.needs_distilled == (weight >= 1e-12)


def test_sd_only_is_weight_1_and_the_same_stage_as_fixed_1():
    curriculum = SelfDistillation.from_value("sd_only", {"alpha": 3})
    assert curriculum.weight([]) == 1 and curriculum.needs_distilled
    assert curriculum.facts() == FixedCurriculum.from_value("fixed:1", {}).facts() == {"weight": 1.0}


@given(st.floats(0, 100), st.lists(st.floats(0.1, 100), min_size=1, max_size=9))
def test_the_adaptive_weight_is_of_the_last_distance_by_the_first(alpha, distances):
    curriculum = AdaptiveCurriculum.from_value("adaptive", {"alpha": alpha})
    expected = adaptive_weight(distances[-1], distances[0], alpha)
    assert curriculum.weight(distances) == expected and curriculum.weight(distances[:1]) == 1
    assert curriculum.facts() == {"alpha": alpha} and curriculum.uses_distance and curriculum.needs_distilled


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_distance_that_is_no_number_names_the_completed_epoch(value):
    with refused("curriculum", "numeric", "after epoch 2; check the LLM"):
        AdaptiveCurriculum(1.0).weight([3.0, 2.0, value])


@pytest.mark.parametrize("value", ["fixed", "fixed:", "fixed:half", "fixed:-0.1", "fixed:1.01", "fixed:nan"])
def test_an_impossible_weight_is_refused(value):
    with refused("curriculum", "value", rf"curriculum: '{value}' is not allowed; give fixed:<weight>"):
        FixedCurriculum.from_value(value, {})


def test_values_are_found_by_their_names():
    found = [find_choice("curriculum", value) for value in ("none", "sd_only", "adaptive", "fixed:0.5")]
    assert found == [None, SelfDistillation, AdaptiveCurriculum, FixedCurriculum]
