"""The curricula that settings name: one for each different way of training, and none where nothing is distilled."""

from __future__ import annotations

import pytest

from recbole_llm.curriculum import AdaptiveCurriculum, make_curricula
from tests.refusals import refused


def curricula(curriculum: str, alpha: object = 1) -> list[dict[str, float]]:
    return [made.facts() for made in make_curricula({"curriculum": curriculum, "alpha": alpha})]


@pytest.mark.parametrize("curriculum", ["none", "fixed:0", "fixed:0.0"])
@pytest.mark.parametrize("alpha", [1, [0.5, 1.0]])
def test_without_a_distilled_answer_there_is_no_curriculum(curriculum, alpha):
    assert curricula(curriculum, alpha) == []


def test_adaptive_is_one_curriculum_for_each_different_alpha_in_the_order_given():
    assert curricula("adaptive", 0.5) == [{"alpha": 0.5}]
    assert curricula("adaptive", (2.0, 0.5, 2.0, 1.0)) == [{"alpha": 2.0}, {"alpha": 0.5}, {"alpha": 1.0}]
    assert all(type(made) is AdaptiveCurriculum for made in make_curricula({"curriculum": "adaptive", "alpha": [1, 2]}))


@pytest.mark.parametrize(("curriculum", "weight"), [("sd_only", 1.0), ("fixed:1", 1.0), ("fixed:0.25", 0.25)])
def test_alphas_that_change_nothing_are_one_curriculum(curriculum, weight):
    assert curricula(curriculum, [0.5, 1.0, 2.0]) == [{"weight": weight}]


def test_an_unknown_curriculum_is_refused():
    with refused("curriculum", "unknown"):
        curricula("adaptative")
