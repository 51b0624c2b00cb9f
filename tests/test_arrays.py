"""What functions written for tensors take and give: arrays, lists and tensors, whole numbers for real ones."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from recbole_llm.adapter import gate_weights, instance_lora, load_balance_loss, mixed_lora, route_experts
from recbole_llm.arrays import computes_in_torch, to_numpy
from recbole_llm.coreset import el2n_scores, influence_scores, inverse_hvp
from recbole_llm.grounding import rank_scores
from recbole_llm.history import actor_critic_losses, discounted_returns
from recbole_llm.llm import all_item_loss, infonce_loss, soft_target_loss, soft_targets
from recbole_llm.objective import cft_loss, choice_loss, msl_loss, rpo_weights, sdpo_loss
from recbole_llm.semantic_ids import (
    assignment_probabilities,
    codebook_loss,
    dynamic_head,
    quantisation_loss,
    residual_quantise,
    sinkhorn_assignment,
    snap_to_codebook,
)

A, B = [[1, 0, 2], [0, 3, 1]], [[2, 1, 0], [1, 1, 4]]
CALLS = {
    "actor_critic_losses": lambda of: actor_critic_losses(of([-1, -2]), of([1, 3]), of([0, 2])),
    "all_item_loss": lambda of: all_item_loss(of(A), of(B), [0, 1], 2),
    "assignment_probabilities": lambda of: assignment_probabilities(of(A), of(B), 2),
    "cft_loss": lambda of: cft_loss(of(A), of(B), [0, 2], [0, 0]),
    "choice_loss": lambda of: choice_loss(of(A), [0, 1]),
    "codebook_loss": lambda of: codebook_loss(of(A), of(B)),
    "discounted_returns": lambda of: discounted_returns(of([1, 0, 1]), 0.82),
    "dynamic_head": lambda of: dynamic_head(of([[1, 2]]), of([A]), of([[1, 0, 3]]), of([B]), of([[2, 2, 1]]), 0.5),
    "el2n_scores": lambda of: el2n_scores(of(A), [0, 2]),
    "gate_weights": lambda of: gate_weights(of(A), 3, top_k=2),
    "inverse_hvp": lambda of: inverse_hvp(None, of([1, 2]), "cg", matrix=of([[2, 1], [1, 4]])),
    "inverse_hvp, exact": lambda of: inverse_hvp(None, of([1, 2]), "exact", matrix=of([[2, 1], [1, 4]])),
    "infonce_loss": lambda of: infonce_loss(of(A), of(B), 2),
    "influence_scores": lambda of: influence_scores(lambda p: torch.stack([p @ p, p.sum()]), of([1, 2]), of([3, -1])),
    "instance_lora": lambda of: instance_lora(
        of([[[1, 2]]]), of([[1, 0], [2, 3]]), of([[1, 4], [5, 0]]), of([[0, 1]]), 2
    ),
    "load_balance_loss": lambda of: load_balance_loss(of(A)),
    "mixed_lora": lambda of: mixed_lora(of([A]), of([[[1, 0, 2]], [[0, 1, 1]]]), of([[[1]], [[2]]]), of([[1, 2]]), 0.3),
    "msl_loss": lambda of: msl_loss(of(A), [0, 2], [[0, 1], [2, 0]], 0.7),
    "quantisation_loss": lambda of: quantisation_loss(of(A), of([B, A]), [[0, 1], [1, 1]]),
    "rank_scores": lambda of: rank_scores(of(A), [0, 2], 2).ranks,
    "route_experts": lambda of: route_experts(of(A), of(B)),
    "rpo_weights": lambda of: rpo_weights(of(A), of(B), 2),
    "sdpo_loss": lambda of: sdpo_loss(of([1, -2]), of(A), 0.1),
    "sinkhorn_assignment": lambda of: sinkhorn_assignment(of(A), 0.4),
    "snap_to_codebook": lambda of: snap_to_codebook(of(A), of(B)),
    "soft_target_loss": lambda of: soft_target_loss(of(A), of(B), 3),
    "soft_targets": lambda of: soft_targets(of(A), of(B), 3),
}
LARGE = [[400, -300, 2], [-350, 0, 10], [401, -300, 2]]  # the squares leave the range of half precision
WIDENED = {
    "all_item_loss": lambda of: all_item_loss(of(LARGE), of(A), [0, 1, 1], 1e-5),
    "assignment_probabilities": lambda of: assignment_probabilities(of(LARGE), of(LARGE[1:]), 2),
    "codebook_loss": lambda of: codebook_loss(of(LARGE), of(LARGE[::-1])),
    "discounted_returns": lambda of: discounted_returns(of([6e4, 6e4, 1]), 0.9),
    "gate_weights": lambda of: gate_weights(of(LARGE), 0.005),
    "infonce_loss": lambda of: infonce_loss(of(LARGE), of(LARGE[::-1]), 1e-5),
    "quantisation_loss": lambda of: quantisation_loss(of(LARGE), of([LARGE[1:], A]), [[0, 1], [1, 1], [0, 0]]),
    "residual_quantise": lambda of: residual_quantise(of(LARGE), of([LARGE[1:], A])),
    "route_experts": lambda of: route_experts(of(LARGE), of([[0, 1, 0], [400, 0, 0]])),
    "sinkhorn_assignment": lambda of: sinkhorn_assignment(of(LARGE), 0.003),
    "snap_to_codebook": lambda of: (snap_to_codebook(of(LARGE), of(LARGE[::-1]))[0],),
    "soft_target_loss": lambda of: soft_target_loss(of(LARGE), of(LARGE), 3),
    "soft_targets": lambda of: soft_targets(of(LARGE), of(A + A[:1]), 3),
}
ALWAYS = {"influence_scores": torch.Tensor, "rank_scores": np.ndarray}  # what they answer with, whatever is given


def backwards(values):
    """The same numbers in memory that runs backwards and cannot be written to."""
    array = np.ascontiguousarray(np.asarray(values, dtype=np.float64)[..., ::-1])[..., ::-1]
    array.setflags(write=False)
    return array


def spread(values):
    """The same numbers as a tensor whose entries lie apart in memory."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]


def parts(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", CALLS)
def test_whole_numbers_and_any_memory_give_what_plain_numbers_give(name):
    expected = parts(CALLS[name](lambda values: np.asarray(values, dtype=np.float64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch warns of memory that it should not write to
        for form in (list, np.array, torch.tensor, spread, backwards, lambda values: np.asarray(values, dtype=">f8")):
            for found, wanted in zip(parts(CALLS[name](form)), expected, strict=True):
                kind = ALWAYS.get(name, torch.Tensor if form in (torch.tensor, spread) else np.ndarray)
                assert isinstance(found, (kind, int))
                assert to_numpy(found).dtype == to_numpy(wanted).dtype
                np.testing.assert_allclose(to_numpy(found), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", WIDENED)
def test_half_precision_computes_in_single_precision(name):
    call = WIDENED[name]
    for half in (torch.float16, torch.bfloat16):
        found, wanted = (
            call(lambda v, t=half: torch.tensor(v).to(t)),
            call(lambda v, t=half: torch.tensor(v).to(t).float()),
        )
        for one, other in zip(parts(found), parts(wanted), strict=True):
            assert np.isfinite(to_numpy(one)).all()
            np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    found, wanted = (call(lambda v, t=t: np.asarray(v, dtype=t)) for t in (np.float16, np.float32))
    for one, other in zip(parts(found), parts(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_whole_numbers_join_real_ones_and_ids_stay_ids():
    @computes_in_torch("x", "y", others=("ids",))
    def types(x, y, ids=None):
        return x.dtype, y.dtype, None if ids is None else ids.dtype

    single, half = torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)
    assert types([1], [2], [3]) == (torch.float64, torch.float64, torch.int64)
    assert types(single, [1, 2], np.array([1], dtype=np.int32)) == (torch.float32, torch.float32, torch.int32)
    assert types(single, torch.tensor([1]), None)[:2] == (torch.float32, torch.float32)
    assert types(single, [0.5])[:2] == (torch.float64, torch.float64)  # a number of Python is not rounded
    assert types(single, half)[:2] == (torch.float32, torch.bfloat16)  # tensors pass as they are


def test_ids_may_be_a_set():
    assert to_numpy({5, 1, 3}).tolist() == [1, 3, 5]
    assert to_numpy(frozenset()).shape == (0,)
