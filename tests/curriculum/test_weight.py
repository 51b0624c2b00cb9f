"""The two formulas of the curriculum, against the same in double precision and at their limits."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.curriculum import adaptive_weight, mean_distance
from tests.refusals import refused

DISTANCES = [100, 80, 60, 60, 110, 0]
WEIGHTS = {
    0.1: [1, 0.980198673307, 0.960789439152, 0.960789439152, 1, 0.904837418036],
    1: [1, 0.818730753078, 0.670320046036, 0.670320046036, 1, 0.367879441171],
    10: [1, 0.135335283237, 0.0183156388887, 0.0183156388887, 1, 4.53999297625e-05],
    100: [1, 2.06115362244e-09, 4.24835425529e-18, 4.24835425529e-18, 1, 3.72007597602e-44],
}
distances = st.floats(0, 1e6)
initial_distances = st.floats(1e-6, 1e6)
alphas = st.floats(0, 200)


@pytest.mark.parametrize("alpha", WEIGHTS)
def test_weights_of_a_worked_example(alpha):
    found = [adaptive_weight(d, DISTANCES[0], alpha, epoch) for epoch, d in enumerate(DISTANCES)]
    assert found == pytest.approx(WEIGHTS[alpha], rel=1e-9, abs=0)
    assert adaptive_weight(95, 100, 10) == pytest.approx(0.606530659713, rel=1e-9)


@pytest.mark.parametrize(
    ("distance", "initial", "alpha"), [(9, 1, 100), (1e300, 1e-11, 1e300), (1.7e308, 2e-12, 100.0), (2, 1, 1e308)]
)
def test_a_distance_that_grew_is_weight_1_without_overflow(distance, initial, alpha):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adaptive_weight(distance, initial, alpha, epoch=1) == 1.0


@given(distances, initial_distances, alphas)
def test_the_weight_is_the_formula_in_its_range(distance, initial, alpha):
    weight = adaptive_weight(distance, initial, alpha, epoch=3)
    assert weight == pytest.approx(float(np.exp(np.minimum(alpha * (distance / initial - 1), 0))), rel=1e-9)
    assert math.exp(-alpha) * (1 - 1e-12) <= weight <= 1
    assert (weight == 1) or distance < initial


@given(distances, distances, initial_distances, alphas)
def test_a_larger_distance_never_weighs_less(one, other, initial, alpha):
    near, far = sorted((one, other))
    assert adaptive_weight(near, initial, alpha) <= adaptive_weight(far, initial, alpha)


@given(distances, initial_distances, alphas, alphas)
def test_a_larger_alpha_never_weighs_more(distance, initial, one, other):
    low, high = sorted((one, other))
    assert adaptive_weight(distance, initial, high) <= adaptive_weight(distance, initial, low)


@given(distances, distances, alphas)
def test_before_training_and_for_alpha_0_it_is_1(distance, initial, alpha):
    assert adaptive_weight(distance, initial, alpha, epoch=0) == 1.0
    assert adaptive_weight(distance, initial, 0, epoch=2) == 1.0


@pytest.mark.parametrize("initial", [0.0, 1e-12])
def test_nothing_to_approach_is_weight_0_after_the_first_epoch_with_a_warning(caplog, initial):
    assert adaptive_weight(initial, initial, 1, epoch=0) == 1.0 and not caplog.records
    assert adaptive_weight(5.0, initial, 1, epoch=1) == adaptive_weight(initial, initial, 0.1, epoch=4) == 0.0
    assert "distilled answers get weight 0" in caplog.text
    assert adaptive_weight(1.1e-12, 1.1e-12, 1, epoch=1) == 1.0  # just above it


@pytest.mark.parametrize("alpha", [-1e-9, -1, math.nan, math.inf, -math.inf])
def test_an_impossible_alpha_is_refused(alpha):
    with refused("alpha", "value", r"alpha: .* is not allowed; give a finite number >= 0"):
        adaptive_weight(1, 1, alpha)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_an_impossible_distance_names_the_epoch(value):
    with refused("curriculum", "numeric", r"the distance of generated and true titles is \S+ after epoch 3; check"):
        adaptive_weight(value, 1, 1, epoch=3)
    with refused("curriculum", "numeric", r"the initial distance of generated and true titles is \S+ after epoch 0"):
        adaptive_weight(1, value, 1, epoch=0)


# ---------------------------------------------------------------------------------------------------- mean distance


def test_mean_distance_of_a_worked_example():
    predicted, target = [(1, 1, 0), (0, 0, 0), (3, 4, 12)], [(1, 0, 0), (0, 2, 0), (3, 4, 0)]
    assert mean_distance(predicted, target) == 5.0


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_mean_distance_is_the_mean_of_the_rows_lengths(rows, width, seed):
    predicted, target = np.random.default_rng(seed).normal(size=(2, rows, width)) * 100
    by_hand = sum(math.dist(*pair) for pair in zip(predicted, target, strict=True)) / rows
    assert mean_distance(predicted, target) == pytest.approx(by_hand, rel=1e-9)
    assert mean_distance(target, predicted) == mean_distance(predicted, target)
    assert mean_distance(predicted, predicted) == 0
    assert mean_distance(predicted + 7, target + 7) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_give_what_arrays_give(dtype):
    predicted = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    target = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    arrays = [tensor.detach().double().numpy() for tensor in (predicted, target)]
    assert mean_distance(predicted, target) == mean_distance(*arrays) == mean_distance(predicted, arrays[1])


def test_float32_rows_are_compared_in_float64():
    """Of rows as long as an LLM's embeddings, float32 would lose a short difference's digits."""
    target = np.full((1, 3), 4096, dtype=np.float32)
    predicted = np.nextafter(target, np.float32(np.inf))
    assert mean_distance(predicted, target) == pytest.approx(math.sqrt(3) * 2.0**-11, rel=1e-12)


@pytest.mark.parametrize(("one", "other"), [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((0, 3), (0, 3)), ((3,), (3,))])
def test_rows_that_do_not_belong_together_are_an_error(one, other):
    with pytest.raises(ValueError, match="two arrays"):
        mean_distance(np.zeros(one), np.zeros(other))
