"""Returns, losses of actor and critic, and the cut: worked cases, loops, and which gradients flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.history import actor_critic_losses, discounted_returns, last_items

rewards = st.lists(st.floats(-5, 5), min_size=1, max_size=8)


@given(rewards, st.floats(0, 1))
def test_returns_are_discounted_sums(given_rewards, gamma):
    sums = [sum(gamma**k * r for k, r in enumerate(given_rewards[t:])) for t in range(len(given_rewards))]
    np.testing.assert_allclose(discounted_returns(given_rewards, gamma), sums, atol=1e-9)
    assert discounted_returns([given_rewards[0]], gamma, standardise=True).tolist() == [0]


def test_returns_and_losses_of_a_worked_example():
    returns = discounted_returns([1.0, 0.0, 1.0], 0.82)
    np.testing.assert_allclose(returns, [1.6724, 0.82, 1.0])
    np.testing.assert_allclose(
        discounted_returns([1.0, 0.0, 1.0], 0.82, standardise=True), [1.131295, -0.765969, -0.365326], atol=1e-6
    )
    actor, critic, advantages = actor_critic_losses(np.log([0.5, 0.25, 0.25]), [1.0, 1.0, 0.5], returns)
    np.testing.assert_allclose(advantages, [0.6724, -0.18, 0.5])
    assert float(actor) == pytest.approx(0.909686, abs=1e-6)
    assert float(critic) == pytest.approx(0.367261, abs=1e-6)


def test_the_actor_moves_no_value_and_the_critic_no_action():
    log_probs = torch.tensor([-0.7, -1.4], requires_grad=True)
    values = torch.tensor([0.3, 2.5], requires_grad=True)
    returns = torch.tensor([1.0, 0.0], requires_grad=True)
    actor, critic, advantages = actor_critic_losses(log_probs, values, returns)
    gradients = torch.autograd.grad(actor + critic, (log_probs, values, returns), allow_unused=True)
    torch.testing.assert_close(gradients[0], -advantages)
    torch.testing.assert_close(gradients[1], torch.tensor([-0.7, 1.0]))  # beyond 1 the critic's loss is linear
    assert gradients[2] is None


@given(st.lists(st.integers(1, 9), max_size=8), st.integers(0, 10), st.integers(0, 12))
def test_the_newest_items_that_fit_padded_on_the_left(history, length, size):
    kept = history[len(history) - min(length, size, len(history)) :]
    assert last_items(history, length, size).tolist() == [0] * (size - len(kept)) + kept


def test_a_length_below_nothing_is_refused():
    with pytest.raises(ValueError, match="length must be >= 0, not -1"):
        last_items([1, 2, 3], -1, 2)


def test_steps_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"do not match: \(2,\), \(1,\), \(2,\)"):
        actor_critic_losses([-1.0, -2.0], [1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="of one episode"):
        discounted_returns([[1.0, 0.0]], 0.5)
    with pytest.raises(ValueError, match="one history"):
        last_items([[1, 2], [3, 4]], 1, 2)
    with pytest.raises(ValueError, match="max_length must be >= 0, not -1"):
        last_items([1], 1, -1)
