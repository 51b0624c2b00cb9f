"""Preference losses: worked cases, identities between them, masks, and margins that overflow an exponential."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.objective import (
    choice_loss,
    dmpo_loss,
    dpo_loss,
    false_negative_mask,
    interleave,
    masked_log_probs,
    rpo_diagonal_loss,
    rpo_loss,
    rpo_weights,
    sdpo_loss,
    simpo_loss,
)

CHOSEN = torch.tensor([1.0, -0.4], dtype=torch.float64)
REJECTED = torch.tensor([[0.2, -0.4, 0.1], [0.6, 0.6, -1.0]], dtype=torch.float64)
FAMILY = [dpo_loss, sdpo_loss, dmpo_loss]
PROMPTS = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
seeds = st.integers(0, 10_000)


def close(found, expected, tolerance=1e-10):
    """Equal numbers, be they floats, arrays or tensors with a graph."""
    found, expected = (float(x.detach() if isinstance(x, torch.Tensor) else x) for x in (found, expected))
    return found == pytest.approx(expected, rel=0, abs=tolerance)


def random_pairs(seed, m=5, k=3):
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = torch.randn(m, generator=generator).double(), torch.randn(m, k, generator=generator).double()
    return chosen, rejected, torch.rand(m, k, generator=generator) < 0.6


@pytest.mark.parametrize(
    ("loss", "value", "rows", "masked"),
    [
        (dpo_loss, 0.680182, (0.642900, 0.717463), 0.700986),
        (sdpo_loss, 1.366839, (1.310063, 1.423616), 1.328403),
        (dmpo_loss, 0.679784, (0.642815, 0.716753), 0.700452),
    ],
)
def test_losses_of_a_worked_example(loss, value, rows, masked):
    assert close(loss(CHOSEN, REJECTED, 0.1), value, 1e-6)
    for row, expected in enumerate(rows):
        assert close(loss(CHOSEN[row : row + 1], REJECTED[row : row + 1], 0.1), expected, 1e-6)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    assert close(loss(CHOSEN, REJECTED, 0.1, mask, torch.tensor([1.0, 3.0])), masked, 1e-6)
    assert close(loss(CHOSEN, REJECTED[:, 0], 0.1), 0.699172, 1e-6)
    assert close(loss(CHOSEN.numpy(), REJECTED.tolist(), 0.1), value, 1e-6)


def test_more_worked_examples():
    assert close(sdpo_loss([0.4], [[0.9, 0.9]], 0.1), 1.13222, 1e-5)
    assert close(sdpo_loss([0.4], [[0.9]], 0.1), 0.71846, 1e-5)
    for smoothing, value in ((0.0, 0.653947), (0.1, 0.661947), (0.5, 0.693947)):
        assert close(dpo_loss([0.8], [0.0], 0.1, smoothing=smoothing), value, 1e-6)
    assert close(simpo_loss([-0.8 / 3], [[-1.3 / 2]], 2.0, 0.5), 0.568677, 1e-6)
    log_probs = torch.tensor([[-0.3, -1.9]], dtype=torch.float64, requires_grad=True)
    loss = choice_loss(log_probs, torch.tensor([0]))
    loss.backward()
    assert close(loss, 0.183901, 1e-6)
    assert log_probs.grad.tolist()[0] == pytest.approx([-0.167982, 0.167982], abs=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "value", "gradients"), [(-900, (350, -20), 1250, (-1, 1, 0)), (900, (-350, -400), 0, (0, 0, 0))]
)
def test_margins_beyond_an_exponential(a, b, value, gradients):
    chosen = torch.tensor([float(a)], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([b], dtype=torch.float64, requires_grad=True)
    loss = sdpo_loss(chosen, rejected, 1.0)
    loss.backward()
    assert close(loss, value)
    assert [*chosen.grad.tolist(), *rejected.grad[0].tolist()] == pytest.approx(gradients)


@pytest.mark.parametrize("gap", [-60.0, -20.5, -3.0, 0.0, 3.0, 20.5, 60.0])
def test_a_loss_is_right_to_its_last_digit(gap):
    exact = math.log1p(math.exp(-abs(gap))) + max(-gap, 0)
    for loss in (*FAMILY, lambda a, b, beta: simpo_loss(a, b, beta, 0.0), rpo_diagonal_loss):
        assert float(loss([gap], [0.0], 1.0)) == pytest.approx(exact, rel=1e-11, abs=0)
    assert float(rpo_loss([gap], [0.0], [[1.0]], 1.0)) == pytest.approx(exact, rel=1e-11, abs=0)


def test_a_mask_of_other_answers_is_refused():
    for loss in FAMILY:
        with pytest.raises(ValueError, match=r"mask \(3, 2\)"):
            loss([1.0, 2.0], [[0.0] * 3] * 2, 1.0, [[True] * 2] * 3)
        assert close(loss([1.0, 2.0], [0.0, 0.0], 1.0, [True, False]), loss([1.0], [0.0], 1.0))


@given(seeds, st.sampled_from([-1e4, -30.0, 30.0, 1e4]))
@settings(max_examples=20)
def test_no_margin_makes_a_loss_or_gradient_infinite(seed, scale):
    chosen, rejected, mask = random_pairs(seed)
    chosen, rejected = (chosen * scale).requires_grad_(), rejected.requires_grad_()
    for loss in (*FAMILY, lambda *x: simpo_loss(*x[:3], 0.5, x[3])):
        value = loss(chosen, rejected, 1.0, mask)
        assert all(torch.isfinite(x).all() for x in (value, *torch.autograd.grad(value, (chosen, rejected))))


@given(seeds, st.floats(0.05, 2))
@settings(max_examples=25)
def test_identities_of_the_family(seed, beta):
    chosen, rejected, mask = random_pairs(seed)
    one = rejected[:, :1]
    assert close(sdpo_loss(chosen, one, beta), dpo_loss(chosen, one, beta))
    assert close(dmpo_loss(chosen, one, beta), dpo_loss(chosen, one, beta))
    assert sdpo_loss(chosen, rejected, beta) >= dmpo_loss(chosen, rejected, beta) - 1e-12
    zeros = torch.zeros_like(chosen), torch.zeros_like(rejected)
    for loss, start in zip(FAMILY, (math.log(2), math.log(4), math.log(2)), strict=True):
        assert close(loss(*zeros, beta), start)
        assert close(loss(chosen, rejected, beta, mask), loss(chosen, rejected.flip(1), beta, mask.flip(1)))
        some = mask.any(1)
        if some.any():  # rows without a negative are as if they were not there
            assert close(loss(chosen, rejected, beta, mask), loss(chosen[some], rejected[some], beta, mask[some]))
        poisoned = torch.where(mask, rejected, torch.inf)
        assert close(loss(chosen, rejected, beta, mask), loss(chosen, poisoned, beta, mask))
        weights = torch.tensor([2.0, 1, 1, 1, 1]).double()
        twice = torch.tensor([0, *range(len(chosen))])
        assert close(loss(chosen, rejected, beta, row_weights=weights), loss(chosen[twice], rejected[twice], beta))
    assert close(
        choice_loss(torch.cat([chosen[:, None], rejected], 1), torch.zeros(5)), sdpo_loss(chosen, rejected, 1.0)
    )


def test_a_step_without_negatives_is_zero_and_connected():
    chosen, rejected, _ = random_pairs(0)
    chosen.requires_grad_()
    for loss in FAMILY:
        value = loss(chosen, rejected, 1.0, torch.zeros_like(rejected, dtype=torch.bool))
        value.backward()
        assert value == 0
    assert not chosen.grad.any()
    assert rpo_loss(chosen[:0], chosen, torch.ones(0, 5), 0.1) == 0
    assert rpo_loss(chosen, chosen[:0], torch.ones(5, 0), 0.1) == 0


def test_choice_of_single_tokens_is_a_softmax_among_legal_tokens():
    logits = torch.randn(6, 8, dtype=torch.float64)
    legal, targets = [1, 3, 4], torch.tensor([3, 1, 1, 4, 3, 4])
    labels = torch.tensor([legal.index(int(target)) for target in targets])
    assert close(
        choice_loss(logits.log_softmax(1)[:, legal], labels),
        -masked_log_probs(logits, targets, [legal] * 6).mean(),
    )


def test_rpo_of_a_worked_example():
    chosen, rejected = torch.tensor([1.0, 0.5]).double(), torch.tensor([0.2, -0.4]).double()
    weights = rpo_weights(PROMPTS, PROMPTS, 0.5)
    expected = torch.tensor([[0.731059, 0.268941], [0.268941, 0.731059]]).double()
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
    assert close(rpo_loss(chosen, rejected, weights, 0.1), 0.672186, 1e-6)
    assert close(rpo_diagonal_loss(chosen, rejected, 0.1), 0.651628, 1e-6)
    assert close(rpo_diagonal_loss(chosen, rejected, 0.1, 1.0), dpo_loss(chosen, rejected, 0.1))
    mask = torch.tensor([[True, False], [True, True]])
    masked = rpo_weights(PROMPTS, PROMPTS, 0.5, mask)
    torch.testing.assert_close(masked, torch.tensor([[1, 0], [0.268941, 0.731059]]).double(), atol=1e-6, rtol=0)
    assert close(rpo_loss(chosen, rejected, masked, 0.1, mask), 0.664451, 1e-6)


@given(seeds, st.floats(0.1, 2))
@settings(max_examples=25)
def test_rpo_by_two_loops_and_its_limits(seed, beta):
    generator = torch.Generator().manual_seed(seed)
    prompts, others = torch.randn(4, 3, generator=generator).double(), torch.randn(5, 3, generator=generator).double()
    chosen, rejected = torch.randn(4, generator=generator).double(), torch.randn(5, generator=generator).double()
    mask = torch.rand(4, 5, generator=generator) < 0.5
    weights = rpo_weights(prompts, others, 0.5, mask)
    rows = []
    for i in range(4):
        kept = [j for j in range(5) if mask[i, j]]
        similar = [math.exp(-(1 - float(torch.cosine_similarity(prompts[i], others[j], 0))) / 0.5) for j in kept]
        shares = [value / sum(similar) for value in similar]
        assert weights[i, kept].tolist() == pytest.approx(shares, abs=1e-10)
        gaps = [beta * share * float(chosen[i] - rejected[j]) for share, j in zip(shares, kept, strict=True)]
        rows += [np.mean(np.logaddexp(0, -np.array(gaps)))] if kept else []
    assert close(rpo_loss(chosen, rejected, weights, beta, mask), np.mean(rows) if rows else 0)
    torch.testing.assert_close(weights, rpo_weights(1e-30 * prompts, 1e20 * others, 0.5, mask), atol=1e-9, rtol=0)
    one = rpo_weights(prompts[:1], others[:1], 0.5)
    assert close(rpo_loss(chosen[:1], rejected[:1], one, beta), dpo_loss(chosen[:1], rejected[:1], beta))
    assert close(rpo_diagonal_loss(chosen[:1], rejected[:1], beta), dpo_loss(chosen[:1], rejected[:1], beta))
    assert close(rpo_loss(0 * chosen, 0 * rejected, torch.ones(4, 5), beta), math.log(2))


@given(seeds, st.floats(0.1, 2), st.floats(0, 1), st.integers(1, 3))
@settings(max_examples=25)
def test_the_diagonal_variant_by_loops(seed, beta, diagonal, n_own):
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = (torch.randn(*shape, generator=generator).double() for shape in ((4,), (4, n_own)))
    mask = torch.rand(4, 4 * n_own, generator=generator) < 0.4
    rows = []
    for i in range(4):
        losses: dict[bool, list[float]] = {True: [], False: []}
        for j, k in itertools.product(range(4), range(n_own)):
            if mask[i, j * n_own + k]:
                losses[i == j].append(np.logaddexp(0, -beta * float(chosen[i] - rejected[j, k])))
        own, others = losses[True], losses[False]
        if own and others:
            rows.append(diagonal * np.mean(own) + (1 - diagonal) * np.mean(others))
        elif own or others:
            rows.append(np.mean(own or others))
    assert close(rpo_diagonal_loss(chosen, rejected, beta, diagonal, mask), np.mean(rows) if rows else 0)
    poisoned = torch.where(mask.any(0).view(4, n_own), rejected, torch.inf)
    assert close(rpo_diagonal_loss(chosen, poisoned, beta, diagonal, mask), np.mean(rows) if rows else 0)
    assert close(rpo_diagonal_loss(0 * chosen, 0 * rejected, beta, diagonal), math.log(2))


def test_negatives_that_are_no_negatives():
    titles, rankable = [0, 1, 2, 1, 4, 5, 5, 7], np.arange(8) > 0
    assert false_negative_mask([3, 5, 6, 2, 7, 0], 1, [2], titles, rankable).tolist() == [0, 1, 0, 0, 1, 0]
    assert false_negative_mask([3, 5, 6, 2, 7, 0], 1, {2}, titles, rankable).tolist() == [0, 1, 0, 0, 1, 0]
    kept = false_negative_mask(torch.tensor([5, 5, 4]), 1, set(), titles, rankable)
    assert kept.tolist() == [True, False, True]
    rankable[5] = False  # the other item of its title is then the first
    assert false_negative_mask([5, 6], 1, [], titles, rankable).tolist() == [False, True]


@given(seeds, st.integers(1, 4), st.integers(1, 7))
def test_interleaved_lists_by_walking_through_them(seed, n_answers, n_items):
    distances = np.random.default_rng(seed).integers(4, size=(n_answers, n_items)) / 2
    order, scores = interleave(distances)
    lists = [sorted(range(n_items), key=lambda item: (row[item], item)) for row in distances]
    walked = dict.fromkeys(lists[b][r] for r in range(n_items) for b in range(n_answers))
    assert order.tolist() == list(walked)
    assert (np.diff(scores[order]) < 0).all()


def test_an_impossible_wrong_answer_costs_nothing():
    assert [float(loss([1.0], [[-math.inf]], 1.0)) for loss in FAMILY] == [0, 0, 0]
    chosen = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(dpo_loss(chosen, [[-math.inf]], 1.0), chosen)[0].tolist() == [0]


def test_shapes_that_do_not_match_are_refused():
    weights = np.ones((2, 1))
    for call, message in (
        (lambda: dpo_loss([1.0, 2.0], [0.0, 1.0], 1.0, row_weights=[1.0]), r"row_weights \[2\] are needed, not \(1,\)"),
        (lambda: rpo_loss([1.0, 2.0], [0.0], weights[:1], 1.0), r"weights \(2, 1\).* are needed, not \(1, 1\)"),
        (lambda: rpo_loss([1.0, 2.0], [0.0], weights, 1.0, [[True]]), r"mask \(2, 1\) is needed, not \(1, 1\)"),
        (lambda: rpo_weights(PROMPTS, PROMPTS, 1.0, [True, True]), r"mask \(2, 2\) is needed, not \(2,\)"),
        (lambda: rpo_weights(PROMPTS, PROMPTS[:, :1], 1.0), r"do not match: \(2, 2\), \(2, 1\)"),
        (lambda: rpo_diagonal_loss([1.0, 2.0], [0.0], 1.0), r"do not match: \(2,\), \(1,\)"),
        (lambda: choice_loss([[1.0, 2.0], [0.0, 1.0]], [0]), r"do not match: \(2, 2\), \(1,\)"),
        (lambda: choice_loss([[1.0, 2.0]], [-1]), "label -1 is out of range: there are 2"),
        (lambda: false_negative_mask([1, -1], 0, [], [0, 1], [True, True]), "item -1 is out of range: there are 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("loss", FAMILY)
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [(1, [-torch.inf] * 2), (torch.inf, [1, 2]), (-torch.inf, [1, 2]), (1, [torch.inf] * 2), (1, [-torch.inf, 2])],
)
def test_an_impossible_answer_leaves_the_gradient_finite(loss, chosen, rejected):
    """Of either kind; with one negative of a row, S-DPO and DMPO are DPO there too, and so are their gradients."""
    found = []
    for function, width in ((loss, 2), (loss, 1), (dpo_loss, 1)):
        a = torch.tensor([chosen, 0.3], requires_grad=True)
        b = torch.tensor([rejected[:width], [0.2, 0.1][:width]], requires_grad=True)
        value = function(a, b, 0.1)
        slopes = torch.autograd.grad(value, (a, b))
        assert not value.isnan() and all(torch.isfinite(slope).all() for slope in slopes)
        found.append((value.detach(), *slopes))
    for one, other in zip(*found[1:], strict=True):
        torch.testing.assert_close(one, other)


def test_weights_of_prompts_are_as_exact_under_autocast():
    prompts = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)) + 1
    exact = rpo_weights(prompts, prompts, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rpo_weights(prompts, prompts, 0.5), exact)


def test_distances_without_an_order_are_refused():
    with pytest.raises(ValueError, match="the distances hold NaN"):
        interleave([[0.3, float("nan"), 0.1]])
