"""GORACS as its published code computes it, step by step, for comparison; and the mixture both are measured on.

Costs are one float32 table scaled to [0, 1]. The greedy search evaluates all rows in every step. An exchange ranks
members and rows by the dual value at the ceil(m / n)-th largest reduced cost, tries the weakest member first, and
solves one full transport per pair.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import ot
from scipy.spatial.distance import cdist


class World(NamedTuple):
    """Rows of a mixture.

    Attributes:
        train: float32 ``[n_train, d]``.
        valid: float32 ``[n_valid, d]``, of the same components in other shares, and shifted.
        norms: float32 ``[n_train]``.
    """

    train: np.ndarray
    valid: np.ndarray
    norms: np.ndarray


def mixture(n_train: int, n_valid: int, width: int = 32, seed: int = 0) -> World:
    """Eight normal components; validation rows have other shares of them than training rows, and a common shift."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, width))
    train_shares = rng.dirichlet(np.full(8, 2.0))
    valid_shares = train_shares**0.3 * rng.dirichlet(np.full(8, 2.0))
    train_labels = rng.choice(8, n_train, p=train_shares)
    valid_labels = rng.choice(8, n_valid, p=valid_shares / valid_shares.sum())
    train = centres[train_labels] + 0.6 * rng.normal(size=(n_train, width))
    valid = centres[valid_labels] + 0.6 * rng.normal(size=(n_valid, width))
    valid += 0.5 * rng.normal(size=width) / np.sqrt(width)
    norms = np.exp(0.2 * rng.normal(size=n_train) + 0.1 * train_labels / 8)
    return World(*(values.astype(np.float32) for values in (train, valid, norms)))


class Plain(NamedTuple):
    """What an exchange search ends with.

    Attributes:
        members: int ``[n]``.
        trace: transport of the costs it was given, at the start and after every exchange.
        n_solves: transports solved.
    """

    members: list[int]
    trace: list[float]
    n_solves: int


def plain_costs(world: World, gradient_weight: float) -> np.ndarray:
    """float32 ``[n_train, n_valid]``: distances by their maximum, less the weighted norms by theirs."""
    distances = cdist(world.train, world.valid)
    costs = distances / distances.max() - gradient_weight * (world.norms / world.norms.max())[:, None]
    return costs.astype(np.float32)


def plain_greedy(costs: np.ndarray, budget: int) -> list[int]:
    """All gains in every step; it goes on until as many rows serve a column as wanted, where that can be."""
    costs = (costs - costs.min()) / (costs.max() - costs.min())
    sums = costs.sum(axis=1)
    members = [int(sums.argmin())]
    goes_on = len(np.unique(costs.argmin(axis=0))) > budget
    while True:
        own = costs[members]
        if len(members) >= budget:
            active = np.unique(own.argmin(axis=0))
            if not goes_on:
                return members
            if len(active) >= budget:
                return [members[index] for index in active]
        gains = 0.5 * (sums - np.abs(costs - own.min(axis=0)).sum(axis=1))
        gains[members] = np.inf
        members.append(int(gains.argmin()))


def plain_refine(costs: np.ndarray, start: list[int], max_exchanges: int, n_candidates: int) -> Plain:
    """Exchanges one at a time, the first that improves."""
    members = list(start)
    value, potentials = _solve(costs[members])
    trace, n_solves = [value], 1
    while len(trace) <= max_exchanges:
        found = None
        for index, row in _pairs(costs, members, potentials, n_candidates):
            trial = members[:index] + [row] + members[index + 1 :]
            trial_value, trial_potentials = _solve(costs[trial])
            n_solves += 1
            if trial_value < value:
                found = trial
                break
        if found is None:
            break
        members, value, potentials = found, trial_value, trial_potentials
        trace.append(value)
    return Plain(members, trace, n_solves)


def _pairs(costs: np.ndarray, members: list[int], potentials: np.ndarray, n_candidates: int) -> list[tuple[int, int]]:
    n_columns = costs.shape[1]
    reduced = costs - (costs[members] - potentials[:, None]).min(axis=0)
    level = np.sort(reduced, axis=1)[:, n_columns - -(-n_columns // len(members))]  # the wrong tail
    scores = level / len(members) + np.minimum(reduced - level[:, None], 0).mean(axis=1)
    inner = np.argsort(scores[members], kind="stable")[-n_candidates:]
    scores[members] = np.inf
    outer = np.argsort(scores, kind="stable")[: min(n_candidates, len(scores) - len(members))]
    return [(int(index), int(row)) for index in inner for row in outer]


def _solve(costs: np.ndarray) -> tuple[float, np.ndarray]:
    n_rows, n_columns = costs.shape
    masses = np.full(n_rows, 1 / n_rows), np.full(n_columns, 1 / n_columns)
    value, facts = ot.emd2(*masses, costs.astype(np.float64), numItermax=300_000, log=True)
    return float(value), facts["u"]
