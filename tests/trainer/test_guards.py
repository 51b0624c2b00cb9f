"""Each guard of training speaks of a planted fault, and is silent where there is none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.trainer.guards import plateau, plateau_warning, warmup_warning, weight_warning


@given(st.integers(2, 3000), st.lists(st.integers(1, 30), min_size=1, max_size=50))
def test_the_plateau_is_the_token_mean_of_uniform_answers(n_answers, lengths):
    """Every answer has the probability 1 / n: its log is shared among its own tokens."""
    assert plateau(n_answers, lengths) == pytest.approx(sum(math.log(n_answers) for _ in lengths) / sum(lengths))


@pytest.mark.parametrize(
    ("warmup", "steps", "speaks"), [(20, 28, True), (20, 99, True), (20, 100, False), (0, 1, False), (1, 4, True)]
)
def test_a_warm_up_of_more_than_a_fifth_is_told(warmup, steps, speaks):
    found = warmup_warning(warmup, steps)
    assert len(found) == speaks and all(f"takes {warmup} of {steps} optimiser steps" in line for line in found)


@pytest.mark.parametrize(
    ("losses", "speaks"), [([2.0, 1.2, 0.97], True), ([2.0, 0.969], False), ([0.5, 2.0], False), ([], False)]
)
def test_a_loss_that_stays_on_the_plateau_is_told(losses, speaks):
    found = plateau_warning([{"train_loss": loss} for loss in losses], level=1.0)
    assert len(found) == speaks and all("= 1.0000 (lowest 0.9700)" in line for line in found)


@pytest.mark.parametrize(("valid", "speaks"), [(0.5, False), (0.98, True), (None, True)])
def test_a_loss_that_fell_within_the_epoch_is_told_by_the_validation_rows(valid, speaks):
    assert bool(plateau_warning([{"train_loss": 1.1, "valid_loss": valid}], level=1.0)) == speaks
    assert not plateau_warning([{"real_loss": None, "train_loss": 0.2, "valid_loss": 2.0}], level=1.0)


def test_with_distilled_answers_the_loss_on_true_ones_counts():
    """The mixed loss is lower; an epoch on distilled answers alone has no loss on true ones."""
    mixed = [{"train_loss": 0.1, "real_loss": None}, {"train_loss": 0.2, "real_loss": 0.99}]
    assert plateau_warning(mixed, 1.0) and not plateau_warning(mixed[:1], 1.0)


@pytest.mark.parametrize(("weights", "speaks"), [([1.0, 0.8, 0.5], True), ([1.0, 0.49], False), ([], False)])
def test_a_weight_that_never_falls_is_told(weights, speaks):
    assert len(weight_warning([{"weight": weight} for weight in weights])) == speaks
