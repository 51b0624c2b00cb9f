"""Returns of an episode and the losses of actor and critic (SAR, arXiv 2108.01442; the training is our reading)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from recbole_llm.arrays import computes_in_torch


@computes_in_torch("rewards", wide=True)
def discounted_returns(rewards: Tensor, gamma: float, standardise: bool = False) -> Tensor:
    """R_t = r_t + gamma R_{t+1} of one episode.

    Args:
        rewards: [t], in order of time.
        gamma: discount in [0, 1]; 0 is a bandit.
        standardise: less the mean, over the sample standard deviation + 1e-8; a single step becomes 0.

    Returns:
        [t], without a gradient.

    Raises:
        ValueError: rewards are not those of one episode.

    Example:
        >>> discounted_returns([1.0, 0.0, 1.0], gamma=0.82).round(4).tolist()
        [1.6724, 0.82, 1.0]
    """
    if rewards.ndim != 1:
        raise ValueError(f"rewards [t] of one episode are needed, not {tuple(rewards.shape)}")
    rewards = rewards.detach()
    returns = torch.empty_like(rewards)
    later = rewards.new_zeros(())
    for step in reversed(range(len(rewards))):
        later = rewards[step] + gamma * later
        returns[step] = later
    if not standardise:
        return returns
    if len(returns) < 2:
        return torch.zeros_like(returns)
    return (returns - returns.mean()) / (returns.std() + 1e-8)


@computes_in_torch("log_probs", "values", "returns", wide=True)
def actor_critic_losses(log_probs: Tensor, values: Tensor, returns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the chosen actions and of the estimated values, summed over steps.

    Args:
        log_probs: [t], log-probabilities of the chosen actions.
        values: [t], the critic's V(s_t).
        returns: [t], R_t.

    Returns:
        ``-sum log p_t * A_t`` for the actor, the sum of smooth L1 (beta 1) of value and return for the critic, and the
        advantages ``A_t = R_t - V_t``, which pass no gradient: the actor does not move the critic.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> actor, critic, advantages = actor_critic_losses([-0.6931471806], [1.0], [1.6724])
        >>> round(float(actor), 6), round(float(critic), 6), advantages.round(4).tolist()
        (0.466072, 0.226061, [0.6724])
    """
    if not log_probs.shape == values.shape == returns.shape:
        shapes = ", ".join(str(tuple(given.shape)) for given in (log_probs, values, returns))
        raise ValueError(f"log_probs, values and returns, all [t], do not match: {shapes}")
    returns = returns.detach()
    advantages = returns - values.detach()
    return -(log_probs * advantages).sum(), smooth_l1_loss(values, returns, reduction="sum"), advantages
