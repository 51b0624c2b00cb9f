"""GORACS for more rows than a cost table can hold: the search is limited to pools of rows."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from recbole_llm.coreset.goracs.costs import Costs, outer_scores
from recbole_llm.coreset.goracs.exchange import Kept, promising_pairs, refine_twice
from recbole_llm.coreset.goracs.start import greedy_start
from recbole_llm.coreset.goracs.transport import solve_transport

_ATTEMPTS_PER_CANDIDATE = 5  # one attempt takes seconds at the sizes this is for


class Pooled(NamedTuple):
    """A selection that was searched for in pools.

    Attributes:
        kept: members are indices of all rows.
        n_nearest: rows of the first pool that are the nearest of a validation row.
        pool: int, sorted: all rows that could be selected.
    """

    kept: Kept
    n_nearest: int
    pool: np.ndarray


def refine_in_pools(
    costs: Costs, budget: int, max_exchanges: int, n_candidates: int, pool_size: int, rng: np.random.Generator
) -> Pooled:
    """The greedy start from one pool, the exchanges from that and another.

    The first pool holds the rows nearest to each validation row and, for the rest, a sample of all; the second, as
    large, the rows that the potentials of the start, in one pass over all rows, find the most promising.

    Args:
        costs: ``[n_train, n_valid]``.
        budget: 1 to n_train.
        max_exchanges: >= 0.
        n_candidates: >= 1; at most five times as many exchanges are tried in search of an improvement.
        pool_size: rows of a pool, of which a table is made; at least ``budget``.
        rng: random generator of the sample.
    """
    first = nearest_pool(costs, pool_size, rng)
    table = costs.part(first)
    greedy = greedy_start(table, budget)
    start = first[greedy.members]
    del table  # before the next of this size is made
    pool = first if len(first) == costs.shape[0] else np.union1d(first, exchange_pool(costs, start, pool_size))
    pairs = functools.partial(promising_pairs, n_candidates=n_candidates)
    kept = refine_twice(
        costs.part(pool), np.searchsorted(pool, start), max_exchanges, pairs, _ATTEMPTS_PER_CANDIDATE * n_candidates
    )
    refined = kept.refined._replace(members=pool[kept.refined.members])
    return Pooled(kept._replace(refined=refined), greedy.n_nearest, pool)


def exchange_pool(costs: Costs, members: np.ndarray, pool_size: int) -> np.ndarray:
    """The rows with the lowest marginal costs beside the members, int64 ``[pool_size]``."""
    own = costs.rows(members)
    nearest = (own - solve_transport(own).potentials[:, None]).min(axis=0)
    return np.argpartition(outer_scores(costs, nearest, len(members)), pool_size - 1)[:pool_size]


def nearest_pool(costs: Costs, pool_size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows to search in: half of them, at most, the nearest of the columns, in equal numbers; the others sampled.

    Args:
        costs: ``[n_train, n_valid]``.
        pool_size: rows wanted; all where there are no more.
        rng: random generator of the sample.

    Returns:
        int64, sorted, ``min(pool_size, n_train)`` rows.
    """
    n_rows, n_columns = costs.shape
    if pool_size >= n_rows:
        return np.arange(n_rows)
    per_column = max(1, pool_size // (2 * n_columns))
    import torch

    found = torch.empty(n_columns, 0, dtype=torch.long)
    values = torch.empty(n_columns, 0)
    for block, own in costs.blocks():
        nearest = torch.from_numpy(own).T.contiguous().topk(min(per_column, len(own)), dim=1, largest=False)
        values = torch.cat([values, nearest.values.float()], dim=1)
        found = torch.cat([found, nearest.indices + block.start], dim=1)
        kept = values.topk(min(per_column, values.shape[1]), dim=1, largest=False)
        values, found = kept.values, found.gather(1, kept.indices)
    near = np.unique(found.numpy())
    if len(near) > pool_size // 2:  # more columns than there is room for
        near = np.sort(rng.choice(near, pool_size // 2, replace=False))
    others = np.ones(n_rows, dtype=bool)
    others[near] = False
    return np.sort(np.concatenate([near, rng.choice(np.flatnonzero(others), pool_size - len(near), replace=False)]))
