"""Losses of answer tokens: worked cases, the same by dense arithmetic, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from recbole_llm.objective import (
    adaptive_temperature,
    bear_loss,
    bear_weights,
    cft_loss,
    cft_weights,
    masked_log_probs,
    msl_loss,
)

# Titles [3 5 9], [3 6 9] and [4 9], 9 is EOS; the answer is 3 6 9.
LEGAL = [[3, 4], [5, 6], [9]]
TARGETS = torch.tensor([3, 6, 9])
seeds = st.integers(0, 10_000)


def worked_logits():
    logits = torch.zeros(3, 10, dtype=torch.float64)
    logits[0, [3, 4, 9]] = torch.tensor([1.5, 0.5, 3.0], dtype=torch.float64)
    logits[1, [5, 6, 7]] = torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64)
    logits[2, 9] = 0.7
    return logits.requires_grad_()


def random_case(seed, vocabulary=7, n=9):
    """Logits, targets, legal sets of 1 to all tokens, rows and weights of rows."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(n, vocabulary)) * 3)
    targets = torch.from_numpy(rng.integers(vocabulary, size=n))
    legal = [
        sorted({int(target), *rng.choice(vocabulary, size=rng.integers(1, vocabulary + 1), replace=False).tolist()})
        for target in targets
    ]
    legal = [[int(target)] if rng.random() < 0.3 else ids for target, ids in zip(targets, legal, strict=True)]
    rows = torch.from_numpy(np.sort(rng.integers(4, size=n)))
    return logits.requires_grad_(), targets, legal, rows, torch.from_numpy(rng.uniform(0, 2, size=4))


def by_masks(logits, targets, legal, tau):
    """Log-probabilities by a table with -inf where a token is not legal."""
    allowed = torch.full_like(logits, -torch.inf)
    for row, ids in enumerate(legal):
        allowed[row, ids] = 0.0
    return (logits / tau + allowed).log_softmax(1)[torch.arange(len(targets)), targets], allowed


def close(found, expected, tolerance=1e-10):
    """Equal numbers, be they floats, arrays or tensors with a graph."""
    found, expected = (float(x.detach() if isinstance(x, torch.Tensor) else x) for x in (found, expected))
    return found == pytest.approx(expected, rel=0, abs=tolerance)


def test_msl_of_a_worked_example():
    logits = worked_logits()
    assert masked_log_probs(logits, TARGETS, LEGAL, 2.0).tolist() == pytest.approx([-0.474077, -0.513015, 0], abs=1e-6)
    loss = msl_loss(logits, TARGETS, LEGAL, tau=2.0)
    assert close(loss, 0.329031, 1e-6)
    assert close(msl_loss(logits, TARGETS, LEGAL, 2.0, "branching"), 0.493546, 1e-6)
    assert close(msl_loss(logits, TARGETS, LEGAL, 2.0, "branching", times_tau=True), 0.987092, 1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = torch.zeros(3, 10, dtype=torch.float64)
    expected[0, 3], expected[0, 4], expected[1, 6], expected[1, 5] = -0.0629234, 0.0629234, -0.0668854, 0.0668854
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=0)


def test_huge_logits_are_no_overflow():
    logits = torch.tensor([[60000.0, 59999.0, -60000.0]], dtype=torch.float64)
    assert close(msl_loss(logits, torch.tensor([1]), [[0, 1, 2]]), 1.31326, 1e-5)
    half = logits.to(torch.bfloat16)
    assert torch.isfinite(msl_loss(half, torch.tensor([1]), [[0, 1, 2]], tau=0.01))


@given(seeds, st.floats(0.1, 5))
@settings(max_examples=40)
def test_msl_is_the_masked_softmax_in_value_and_gradient(seed, tau):
    logits, targets, legal, rows, weights = random_case(seed)
    expected, _ = by_masks(logits, targets, legal, tau)
    torch.testing.assert_close(masked_log_probs(logits, targets, legal, tau), expected, atol=1e-10, rtol=0)
    branching = torch.tensor([len(ids) > 1 for ids in legal])
    for reduction, counted in (("answer", torch.ones(len(targets))), ("branching", branching.double())):
        v = weights[rows] * counted
        mean = -(expected * v).sum() / v.sum().clamp(min=1e-300)
        found = msl_loss(logits, targets, legal, tau, reduction, rows, weights)
        assert close(found, mean)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (found, mean)), atol=1e-10, rtol=0
        )
        assert close(found, msl_loss(logits, targets, legal, tau, reduction, rows, 7 * weights))


@given(seeds)
@settings(max_examples=25)
def test_what_leaves_the_losses_as_they_are(seed):
    logits, targets, legal, rows, _ = random_case(seed)
    _, allowed = by_masks(logits, targets, legal, 1.0)
    shifted = torch.where(allowed == 0, logits + 3.5, logits * -40 + 11)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    for loss in (msl_loss, bear_loss):
        assert close(loss(logits, targets, legal, tau=1.7), loss(shifted, targets, legal, tau=1.7), 1e-9)
        assert close(
            loss(logits, targets, legal), loss(logits[order], targets[order], [legal[i] for i in order.tolist()])
        )
        repeated = torch.cat([torch.arange(len(rows)), torch.arange(len(rows))[rows == 0]])  # row 0 twice
        assert close(
            loss(logits, targets, legal, rows=rows, row_weights=torch.tensor([2.0, 1, 1, 1])),
            loss(logits[repeated], targets[repeated], [legal[i] for i in repeated.tolist()]),
        )
    everything = [list(range(logits.shape[1]))] * len(targets)
    assert close(msl_loss(logits, targets, everything), functional.cross_entropy(logits, targets))


def test_a_title_on_a_path_of_its_own_costs_exactly_nothing():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2])
    for loss in (msl_loss, bear_loss):
        value = loss(logits, targets, [[int(t)] for t in targets], tau=0.3)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value == 0
        assert not gradient.any()


def test_no_tokens_cost_nothing_and_give_a_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)
    for loss in (msl_loss, bear_loss):
        value = loss(logits, torch.zeros(0, dtype=torch.long), [])
        value.backward()
        assert value == 0
    assert cft_loss(logits, logits, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)) == 0


def test_wrong_use_is_told():
    logits, targets = torch.zeros(2, 4), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"answer token 1: its target 2"):
        msl_loss(logits, targets, [[1, 3], [0, 3]])
    for strange in (4, -1):  # would be a token of the answer token beside it
        with pytest.raises(ValueError, match=f"answer token {int(strange < 0)}: legal token {strange} is not in"):
            msl_loss(logits, targets, [[1], [2, strange]] if strange < 0 else [[1, strange], [2]])
    with pytest.raises(ValueError, match="temperature"):
        msl_loss(logits, targets, [[1], [2]], tau=0)
    with pytest.raises(ValueError, match="do not match"):
        msl_loss(logits, targets, [[1]])
    with pytest.raises(ValueError, match="reduction"):
        msl_loss(logits, targets, [[1], [2]], reduction="mean")
    with pytest.raises(ValueError, match="rows"):
        msl_loss(logits, targets, [[1], [2]], row_weights=torch.ones(2))
    with pytest.raises(ValueError, match="k must be"):
        bear_loss(logits, targets, [[1], [2]], k=0)
    with pytest.raises(ValueError, match="form"):
        bear_loss(logits, targets, [[1], [2]], form="penalty")


def test_temperatures_of_worked_examples():
    legal = [[9, 1, 0, 2, -1, 1, 0, 1], [2, 7, 1, 0, 0, -2, 1, 1]]
    assert adaptive_temperature([9, 7], legal, 8, 1.5) == pytest.approx(1.675)
    legal = [[6, 1, 0, 2, -1, 1, 0, 1, 0, 1, -1, 2], [5, 1, 1, 0, 0, -2, 1, 1, 0, 0, 2, 0]]
    assert adaptive_temperature([6, 5], legal, 12, 1.5) == pytest.approx(1.617893, abs=1e-6)
    legal = [[2, 1, 0, -3], [1, 4, -5, 0]]
    assert adaptive_temperature([2, 1], legal, 4, 2.0, eta=0.75) == pytest.approx(1.975)
    assert adaptive_temperature([-9, -7], [[9.0, 1, 0, 2], [2, 7, 1, 0]], 40, 2.0) == pytest.approx(1.975)


def test_rows_with_fewer_legal_tokens_are_filled_with_what_does_not_count():
    legal = [9.0, 1, 0, 2, -1], [7.0, 2, 0]
    pooled = adaptive_temperature([9, 7], [*legal[0], *legal[1]], 8, 1.5)
    assert adaptive_temperature([9, 7], [legal[0], [*legal[1], -np.inf, -np.inf]], 8, 1.5) == pooled
    assert adaptive_temperature([9], [[9.0, -np.inf, -np.inf]], 8, 1.5) == 1.5


def test_tokens_that_cannot_come_have_no_effect():
    generator = torch.Generator().manual_seed(0)
    z, z0 = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    targets, rows = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1])
    expected = cft_loss(z, z0, targets, rows)
    wide, wide0 = (torch.cat([one, torch.full((4, 2), -torch.inf)], dim=1) for one in (z, z0))
    wide.requires_grad_()
    found = cft_loss(wide, wide0, targets, rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(found, wide)
    assert gradient.isfinite().all() and (gradient[:, 5:] == 0).all()


NO_NUMBERS = [([math.nan], [[1.0, 2.0]], 8), ([-math.inf], [[1.0, 2.0]], 8), ([3.0], [[1.0, math.inf]], 8)]


@pytest.mark.parametrize(
    ("positive", "legal", "n_root"), [([3.0], [[3.0, 1.0]], 4), ([3.0], [[3.0]], 9), ([], [], 9), *NO_NUMBERS]
)
def test_a_temperature_without_an_estimate_stays(positive, legal, n_root):
    assert adaptive_temperature(positive, legal, n_root, 2.25) == 2.25


@given(st.floats(3, 30), st.floats(0.05, 1.5), st.integers(40, 4000))
def test_the_estimated_temperature_solves_its_equation(gap, spread, n_root):
    """Where it is inside the bounds, the right first token has about the probability that is aimed at."""
    legal = np.array([[-spread, spread], [spread, -spread]])
    variance, c = legal.var(ddof=1), np.log(0.25 * n_root)
    found = adaptive_temperature([gap, gap], legal, n_root, 0.0, momentum=1.0, bounds=(1e-9, 1e9))
    if gap**2 > 2 * c * variance:
        assert c * found**2 - gap * found + variance / 2 == pytest.approx(0, abs=1e-6 * gap**2)


def test_bear_of_a_worked_example():
    logits, arguments = worked_logits(), {"k": 2, "xi": 2.75, "weight": 0.25}
    assert bear_weights(logits, TARGETS, LEGAL, **arguments).tolist() == pytest.approx(
        [1.14748, 1.14305, 1.125], abs=1e-5
    )
    loss = bear_loss(logits, TARGETS, LEGAL, **arguments)
    assert close(loss, 0.342125, 1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, [3, 4]].tolist() == pytest.approx([-0.134731, 0.134731], abs=1e-6)
    assert gradient[1, [6, 5]].tolist() == pytest.approx([-0.154713, 0.154713], abs=1e-6)
    assert close(bear_loss(logits, TARGETS, LEGAL, **arguments, form="margin"), 0.446914, 1e-6)


@given(seeds, st.integers(1, 8), st.floats(0.2, 4), st.floats(0.1, 3), st.sampled_from(["weights", "margin"]))
@settings(max_examples=40)
def test_bear_is_the_formula_in_value_and_gradient(seed, k, xi, weight, form):
    logits, targets, legal, rows, of_rows = random_case(seed)
    log_p, allowed = by_masks(logits, targets, legal, 1.3)
    table = (logits / 1.3 + allowed).log_softmax(1).detach()
    bars = torch.stack(
        [row[ids].sort(descending=True).values[min(k, len(ids)) - 1] for row, ids in zip(table, legal, strict=True)]
    )
    v = of_rows[rows] * torch.tensor([float(len(ids) > 1) for ids in legal])
    if form == "weights":
        w = 1 + weight * torch.sigmoid((log_p.detach() - bars) / xi)
        expected = -(v * w * log_p).sum() / (v * w).sum().clamp(min=1e-300)
    else:
        expected = (v * (weight * torch.sigmoid((bars - log_p) / xi) - log_p)).sum() / v.sum().clamp(min=1e-300)
    found = bear_loss(logits, targets, legal, 1.3, k, xi, weight, rows, of_rows, form=form)
    assert close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)), atol=1e-9, rtol=0)


@given(seeds)
@settings(max_examples=15)
def test_bear_without_weight_is_msl_over_branching_tokens(seed):
    logits, targets, legal, *_ = random_case(seed)
    assert close(bear_loss(logits, targets, legal, weight=0.0), msl_loss(logits, targets, legal, reduction="branching"))


def worked_counterfactual():
    z = torch.tensor([[2, 0, 1], [0, 1, 0.5], [0.3, 0.2, 1.5]], dtype=torch.float64, requires_grad=True)
    z0 = torch.tensor([[1, 0, 1], [0, 1.2, 0], [0.3, 0, 1.5]], dtype=torch.float64, requires_grad=True)
    return z, z0, torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.long)


def test_cft_of_a_worked_example():
    z, z0, targets, rows = worked_counterfactual()
    loss = cft_loss(z, z0, targets, rows)
    assert close(loss, 0.597728, 1e-6)
    assert close(cft_loss(z, z0, targets, rows, weight=0), 0.504606, 1e-6)
    assert close(cft_loss(z, z0, targets, rows, beta=1, weight=0), 0.513774, 1e-6)
    assert close(cft_loss(z, z0, targets, rows, beta=1, weight=0), functional.cross_entropy(z, targets))
    factual, counterfactual = torch.autograd.grad(loss, (z, z0))
    assert factual[0].tolist() == pytest.approx([-0.201145, 0.0593199, 0.141825], abs=1e-6)
    assert counterfactual[0].tolist() == pytest.approx([0.0226071, -0.0113035, -0.0113035], abs=1e-6)
    assert [cft_weights(n, 0.25).tolist() for n in (1, 2, 4)] == [[1.0], [1.0, 0.25], [1.0, 0.75, 0.5, 0.25]]


@given(seeds, st.floats(0, 1), st.floats(0, 2))
@settings(max_examples=25)
def test_cft_is_a_loop_over_rows(seed, beta, weight):
    logits, targets, _, rows, of_rows = random_case(seed)
    other = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=logits.shape))
    sums = torch.zeros(3, dtype=torch.float64)
    for row in rows.unique():
        at = rows == row
        w = of_rows[row] * cft_weights(int(at.sum()), beta)
        plain = functional.cross_entropy(logits[at], targets[at], reduction="none")
        effect = functional.cross_entropy(logits[at] - other[at], targets[at], reduction="none")
        sums = sums + torch.stack([(w * plain).sum(), (w * effect).sum(), w.sum()])
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))[rows].argsort(stable=True)
    found = cft_loss(logits[order], other[order], targets[order], rows[order], beta, weight, of_rows)
    assert close(found, ((sums[0] + weight * sums[1]) / sums[2]) if sums[2] > 0 else 0.0)


def test_arrays_answer_with_arrays_and_tensors_with_tensors():
    logits = worked_logits().detach()
    found = msl_loss(logits.numpy(), TARGETS.tolist(), LEGAL, 2.0)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64
    assert close(found, msl_loss(logits, TARGETS, LEGAL, 2.0))
    assert msl_loss(logits.float(), TARGETS, LEGAL).dtype == torch.float32


def test_large_logits_keep_their_difference():
    found = masked_log_probs(np.array([[1e12, 1e12 + 1, 0.0]]), [1], [[0, 1]])
    assert found.tolist() == pytest.approx([-np.log1p(np.exp(-1))], abs=1e-12)


def test_rows_and_targets_out_of_range_are_refused():
    logits, legal = np.zeros((1, 2)), [[0, 1]]
    for row in (1, -1):
        with pytest.raises(ValueError, match=f"row {row} is out of range: there are 1"):
            msl_loss(logits, [1], legal, rows=[row], row_weights=[2.0])
    with pytest.raises(ValueError, match=r"rows \[1\] are needed, one for each token"):
        bear_loss(logits, [1], legal, rows=[0, 0], row_weights=[2.0])
    with pytest.raises(ValueError, match="target -100 is out of range: there are 2"):
        cft_loss(logits, logits, [-100], [0])
