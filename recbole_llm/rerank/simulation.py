"""A simulation in which a list's value is relevance and dispersion, and the regret of learners in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recbole_llm.rerank.bandit import ModularDispersionBandit
from recbole_llm.rerank.lists import greedy_list, list_value

Floats = NDArray[np.float64]
POLICIES = ("lmdh", "linucb", "random")


@dataclass(frozen=True)
class ListWorld:
    """One user who likes lists by known weights.

    In every round there are new candidates: features on the unit sphere, and for each distance points on a sphere in
    three dimensions, half the Euclidean distance of which it is. An item's feedback is its relevance, and its distances
    to the items before it, weighed by theta (unit length, drawn) and beta, plus noise.

    Attributes:
        n_features: entries of theta.
        beta: weights of the distances.
        n_candidates: number of candidates of a round.
        length: items of a list.
        noise: standard deviation of the feedback.
    """

    n_features: int = 5
    beta: tuple[float, ...] = (0.3, 0.15)
    n_candidates: int = 20
    length: int = 5
    noise: float = 0.5

    def candidates(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Features [n, d] and distances [J, n, n] of a round."""
        x = _on_sphere(rng, (self.n_candidates, self.n_features))
        points = _on_sphere(rng, (len(self.beta), self.n_candidates, 3))
        return x, np.linalg.norm(points[:, :, None] - points[:, None], axis=3) / 2


def _on_sphere(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    points = rng.normal(size=shape)
    found: Floats = points / np.linalg.norm(points, axis=-1, keepdims=True)
    return found


def simulated_regret(
    policy: str, rounds: int, seed: int = 0, exploration: float = 0.5, world: ListWorld | None = None
) -> Floats:
    """What a policy's lists are worth less than greedy lists by the true weights, summed over rounds.

    Args:
        policy: ``lmdh`` learns relevance and dispersion; ``linucb`` (Li et al. 2010) relevance alone, by the same ridge
            regression and confidence bound; ``random`` draws its lists.
        rounds: number of rounds.
        seed: seed of the world and of the random lists; all policies meet the same candidates and the same noise.
        exploration: weight of the confidence bound.
        world: by default :class:`ListWorld` as it is.

    Returns:
        float64 [rounds], the regret after each round.

    Raises:
        ValueError: there is no such policy.

    Example:
        >>> lmdh, by_chance = (simulated_regret(policy, rounds=60) for policy in ("lmdh", "random"))
        >>> bool(lmdh[-1] < by_chance[-1] / 2)
        True
    """
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; choose from: {', '.join(POLICIES)}")
    world = world or ListWorld()
    theta = _on_sphere(np.random.default_rng([seed, 0]), (world.n_features,))
    beta, rng = np.array(world.beta), np.random.default_rng([seed, 1])
    chance, sees = np.random.default_rng([seed, 2]), float(policy == "lmdh")
    bandit = ModularDispersionBandit(world.n_features, len(beta))
    lost = np.zeros(rounds)
    for t in range(rounds):
        x, distances = world.candidates(rng)
        noise = world.noise * rng.normal(size=world.length)
        table = np.einsum("j,jab->ab", beta, distances)
        best, _ = greedy_list(x @ theta, table, world.length)
        if policy == "random":
            order = chance.permutation(len(x))[: world.length]
        else:
            order, _ = bandit.recommend(x, sees * distances, world.length, exploration)
            z = np.stack([distances[:, order[:k], order[k]].sum(axis=1) for k in range(len(order))])
            bandit.update(x[order], sees * z, x[order] @ theta + z @ beta + noise)
        lost[t] = list_value(best, x @ theta, table) - list_value(order, x @ theta, table)
    return np.cumsum(lost)
