"""GORACS' start: greedy on the relaxed objective (arXiv 2506.04015, algorithm 1), then by capacity."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from recbole_llm.coreset.goracs.costs import Costs, outer_scores
from recbole_llm.coreset.goracs.transport import marginal_costs, solve_transport
from recbole_llm.coreset.lazy_greedy import lazy_argmin

_BATCHES = 2  # in which rows join by marginal cost; those of one batch are much alike


class Greedy(NamedTuple):
    """What the greedy search found.

    Attributes:
        members: int64, in the order of selection; fewer than the budget where no further row gains anything.
        n_nearest: training rows that are the nearest of at least one validation row.
        n_evaluated: rows of costs that were looked at after the first pass.
    """

    members: np.ndarray
    n_nearest: int
    n_evaluated: int


def greedy_start(costs: Costs, budget: int) -> Greedy:
    """:func:`relaxed_greedy`, filled up to the budget once no row gains: by capacity or by duals, whichever is better.

    (The paper leaves open which rows join then, and the authors' code takes what rounding errors favour.)

    Args:
        costs: ``[n_train, n_valid]``.
        budget: 1 to n_train.
    """
    greedy = relaxed_greedy(costs, budget)
    if len(greedy.members) == budget:
        return greedy
    filled = [fill(costs, greedy.members, budget) for fill in (fill_by_capacity, fill_by_duals)]
    return greedy._replace(members=min(filled, key=lambda members: solve_transport(costs.rows(members)).value))


def relaxed_greedy(costs: Costs, budget: int) -> Greedy:
    """Minimise the mean cost between a validation row and its nearest selected row, one row at a time.

    If more training rows than the budget are the nearest of a validation row, the search goes past the budget until as
    many selected rows serve at least one; the idle ones are left out. Gains only shrink, and so a row is considered
    again only when its last gain would win.

    Args:
        costs: ``[n_train, n_valid]``.
        budget: 1 to n_train.
    """
    first, n_nearest = _overview(costs)
    members = [first]
    nearest = costs.some(np.array([first]))[0]
    owner = np.zeros(len(nearest), dtype=np.int64)  # index of the nearest member
    gains = np.concatenate([_gains(block, nearest) for _, block in costs.blocks()])
    gains[first] = np.inf
    n_evaluated, serving = 0, 1

    def evaluate(rows: np.ndarray) -> np.ndarray:
        nonlocal n_evaluated
        n_evaluated += len(rows)
        return _gains(costs.some(rows), nearest)

    while len(members) < budget or (n_nearest > budget and serving < budget):
        if len(members) == costs.shape[0]:
            break
        row = lazy_argmin(gains, evaluate)
        if gains[row] >= -costs.noise * len(nearest):
            break
        own = costs.some(np.array([row]))[0]
        owner[own < nearest] = len(members)
        nearest = np.minimum(nearest, own)
        gains[row] = np.inf
        members.append(row)
        serving = len(np.unique(owner))
    chosen = np.array(members)
    if n_nearest > budget and len(chosen) >= budget:
        chosen = chosen[np.unique(owner)]
    return Greedy(chosen, n_nearest, n_evaluated)


def _gains(costs: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """By how much rows lower the sum over columns, <= 0; summed directly, as a difference of sums would be noise."""
    lowered = costs - nearest
    gains: np.ndarray = np.minimum(lowered, 0, out=lowered).sum(axis=1, dtype=np.float64)
    return gains


def _overview(costs: Costs) -> tuple[int, int]:
    """The row of the smallest sum, and how many rows are the nearest of a column; of equal ones the first."""
    sums = np.empty(costs.shape[0])
    lowest = np.full(costs.shape[1], np.inf)
    nearest = np.zeros(costs.shape[1], dtype=np.int64)
    for block, values in costs.blocks():
        sums[block] = values.sum(axis=1, dtype=np.float64)
        smallest = values.min(axis=0)
        better = np.flatnonzero(smallest < lowest)
        lowest[better] = smallest[better]
        nearest[better] = block.start + values[:, better].argmin(axis=0)
    return int(sums.argmin()), len(np.unique(nearest))


def fill_by_capacity(costs: Costs, members: np.ndarray, budget: int) -> np.ndarray:
    """Add rows, each with its full share of the mass, until the budget is met.

    Again and again the row that serves its share of the columns most cheaply is taken, and what it serves is served.
    The members come first, in their order. The costs so paid bound the transport from above.

    Args:
        costs: ``[n_train, n_valid]``.
        members: int, at most ``budget``; none for a selection from scratch.
        budget: 1 to n_train.

    Returns:
        int64 ``[budget]``, beginning with the members.
    """
    n_columns = costs.shape[1]
    unit = math.gcd(budget, n_columns)
    share = n_columns // unit  # mass of a row; that of a column is budget / unit
    left = np.full(n_columns, budget // unit)
    chosen = list(map(int, members))
    for row in chosen:
        _serve(costs.rows(np.array([row]))[0], left, share)
    bounds = np.concatenate([marginal_costs(block, budget) for _, block in costs.blocks()]) * (share * budget)
    bounds -= 1e-6 * np.abs(bounds) + costs.noise * share * budget  # blocks may be rounded
    bounds[chosen] = np.inf
    while len(chosen) < budget:
        open_columns = np.flatnonzero(left)

        def evaluate(rows: np.ndarray, open_columns: np.ndarray = open_columns) -> np.ndarray:
            return _service_costs(costs.rows(rows)[:, open_columns], left[open_columns], share)

        row = lazy_argmin(bounds, evaluate)
        bounds[row] = np.inf
        chosen.append(row)
        _serve(costs.rows(np.array([row]))[0], left, share)
    return np.array(chosen)


def fill_by_duals(costs: Costs, members: np.ndarray, budget: int) -> np.ndarray:
    """Add the rows of the lowest marginal costs in a few batches, with new potentials after each.

    Args:
        costs: ``[n_train, n_valid]``.
        members: int, 1 to ``budget``.
        budget: 1 to n_train.

    Returns:
        int64 ``[budget]``, beginning with the members.
    """
    chosen = np.array(members)
    for batches_left in range(_BATCHES, 0, -1):
        own = costs.rows(chosen)
        nearest = (own - solve_transport(own).potentials[:, None]).min(axis=0)
        scores = outer_scores(costs, nearest, budget)
        scores[chosen] = np.inf
        count = -(-(budget - len(chosen)) // batches_left)
        chosen = np.concatenate([chosen, np.argsort(scores, kind="stable")[:count]])
    return chosen


def _serve(costs: np.ndarray, left: np.ndarray, share: int) -> None:
    """Take ``share`` of what is left of the cheapest columns, in place."""
    order = np.argsort(np.where(left > 0, costs, np.inf), kind="stable")
    before = np.concatenate([[0], np.cumsum(left[order])[:-1]])
    left[order] -= np.clip(share - before, 0, left[order])


def _service_costs(costs: np.ndarray, left: np.ndarray, share: int) -> np.ndarray:
    """``[k]``: costs of the cheapest ``share`` of mass for each row, over columns with mass ``left``."""
    enough = int(np.searchsorted(np.cumsum(np.sort(left)), share)) + 1  # columns that hold the share, any of them
    if enough < costs.shape[1]:
        columns = np.argpartition(costs, enough - 1, axis=1)[:, :enough]
        costs, left = np.take_along_axis(costs, columns, axis=1), left[columns]
    else:
        left = np.broadcast_to(left, costs.shape)
    order = np.argsort(costs, axis=1, kind="stable")
    masses = np.take_along_axis(left, order, axis=1)
    before = np.cumsum(masses, axis=1) - masses
    taken = np.clip(share - before, 0, masses)
    paid: np.ndarray = (np.take_along_axis(costs, order, axis=1) * taken).sum(axis=1)
    return paid
