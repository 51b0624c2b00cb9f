"""Contrastive losses: worked cases, loops, and views of items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.llm import all_item_loss, infonce_loss, soft_target_loss, soft_targets, thin_attributes

X, Y = [[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [0.0, 1.0]]


def log_softmax(row):
    return row - np.logaddexp.reduce(row)


def test_losses_of_worked_examples():
    np.testing.assert_allclose(soft_targets(X, Y, 1.0), [[0.668188, 0.331812], [0.331812, 0.668188]], atol=1e-6)
    assert float(soft_target_loss(X, Y, 1.0)) == pytest.approx(0.647966, abs=1e-6)
    assert float(soft_target_loss(X, Y, 2.0)) == pytest.approx(0.616752, abs=1e-6)
    assert float(infonce_loss(X, Y, 0.5)) == pytest.approx(0.298736, abs=1e-6)
    items = [[1.0, 0], [0.6, 0.8], [0, 1]]
    assert float(all_item_loss([[1.0, 0]], items, [0], 0.05)) == pytest.approx(0.000335, abs=1e-6)
    assert float(all_item_loss([[1.0, 0]], items, [1], 0.05)) == pytest.approx(8.000335, abs=1e-6)


def test_autocast_takes_no_digits():
    """The cosines of a step's states are as exact inside the pass that makes the states as outside."""
    x, y = (torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)) + 1 for seed in (0, 1))

    def losses() -> list[float]:
        found = (soft_target_loss(x, y, 0.5), infonce_loss(x, y, 0.1), all_item_loss(x, y, torch.arange(16), 0.1))
        return [float(loss) for loss in (*found, soft_targets(x, y, 1.0).std())]

    exact = losses()
    with torch.autocast("cpu", torch.bfloat16):
        assert losses() == exact and soft_targets(x, y, 1.0).dtype == torch.float32


def test_no_items_cost_nothing_and_give_a_gradient():
    x = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    for loss in (
        soft_target_loss(x, x, 1.0),
        infonce_loss(x, x, 1.0),
        all_item_loss(x, torch.eye(3).double(), [], 1.0),
    ):
        (gradient,) = torch.autograd.grad(loss, x)
        assert (float(loss), gradient.shape) == (0, (0, 3))


@given(st.integers(0, 10_000), st.floats(0.2, 3))
@settings(max_examples=20)
def test_losses_by_loops(seed, tau):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 4, 3))
    targets = np.array([np.exp(log_softmax(row)) for row in tau / 2 * (x @ x.T + y @ y.T)])
    logits = x @ y.T / tau
    both = sum(-targets[i] @ log_softmax(logits[i]) - targets[:, i] @ log_softmax(logits[:, i]) for i in range(4))
    assert float(soft_target_loss(x, y, tau)) == pytest.approx(both / 8)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    cosines = x @ y.T / tau
    both = sum(-log_softmax(cosines[i])[i] - log_softmax(cosines[:, i])[i] for i in range(4))
    assert float(infonce_loss(7 * x, y, tau)) == pytest.approx(both / 8)
    chosen = rng.integers(4, size=4)
    expected = -np.mean([log_softmax(cosines[i])[target] for i, target in enumerate(chosen)])
    assert float(all_item_loss(x, 3 * y, chosen, tau)) == pytest.approx(expected)


def test_targets_pass_a_gradient_unless_they_are_detached():
    x = torch.tensor(X, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(Y, dtype=torch.float64)
    free, detached = (torch.autograd.grad(soft_target_loss(x, y, 1.0, d), x)[0] for d in (False, True))
    assert not torch.allclose(free, detached)
    fixed = soft_targets(x, y, 1.0).detach()
    logits = x @ y.T
    loss = -(fixed * logits.log_softmax(1) + fixed.T * logits.T.log_softmax(1)).sum() / 4
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], detached)


@given(st.integers(0, 9), st.floats(0, 1), st.randoms())
def test_a_view_keeps_a_share_and_never_nothing(n, ratio, random):
    order = random.sample(range(n), n)
    view = thin_attributes(list("abcdefghi"[:n]), ratio, order)
    assert view == ["abcdefghi"[i] for i in order[: len(view)]]
    assert len(view) == (max(1, n - int(np.floor(ratio * n + 1e-9))) if n else 0)


@pytest.mark.parametrize(("n", "kept"), [(7, 5), (3, 2), (2, 2), (1, 1), (5, 3)])
def test_sizes_of_views(n, kept):
    assert len(thin_attributes(range(n), 0.4, range(n))) == kept


def test_a_share_of_fewer_bits_is_the_decimal_that_it_shows():
    """np.float32(0.96) * 275 is 263.99997."""
    assert len(thin_attributes(range(275), np.float32(0.96), range(275))) == 275 - 264


def test_a_view_of_an_impossible_share_or_order_is_refused():
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"the ratio must lie in \[0, 1\]"):
            thin_attributes(["title", "genre"], ratio, [0, 1])
    for order in ([0], [0, 0], [1, 2]):
        with pytest.raises(ValueError, match="a permutation of 2 positions"):
            thin_attributes(["title", "genre"], 0.5, order)


@pytest.mark.parametrize("scale", [1e-200, 1e-13, 1e200])
def test_the_length_of_vectors_does_not_matter_however_small_or_large(scale):
    x, y = np.array(X), np.array(Y)
    assert float(infonce_loss(scale * x, y, 0.5)) == pytest.approx(float(infonce_loss(x, y, 0.5)))
    assert float(all_item_loss(x, scale * y, [0, 1], 0.5)) == pytest.approx(float(all_item_loss(x, y, [0, 1], 0.5)))


def test_a_vector_of_zeros_is_at_right_angles_to_all_with_a_gradient_of_ordinary_size():
    users = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    loss = all_item_loss(users, torch.tensor(X, dtype=torch.float64), torch.tensor([0]), 0.5)
    assert float(loss.detach()) == pytest.approx(np.log(2))
    (gradient,) = torch.autograd.grad(loss, users)
    assert gradient.abs().max() < 10


def test_what_does_not_match_is_refused():
    for loss in (soft_target_loss, infonce_loss):
        with pytest.raises(ValueError, match="tau must be > 0, not 0"):
            loss(X, Y, 0)
        with pytest.raises(ValueError, match=r"do not match: \(2, 2\), \(1, 2\)"):
            loss(X, Y[:1], 1.0)
    with pytest.raises(ValueError, match="tau must be > 0, not -1"):
        all_item_loss(X, Y, [0, 1], -1)
    with pytest.raises(ValueError, match="do not match"):
        all_item_loss(X, Y, [0], 1.0)
    for target in (2, -1, -100):
        with pytest.raises(ValueError, match=f"target {target} is out of range: there are 2"):
            all_item_loss(X, Y, [0, target], 1.0)
