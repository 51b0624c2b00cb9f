"""GORACS' search for one class of rows: start, exchanges, and a record of both."""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import numpy as np

from recbole_llm.coreset.goracs.costs import Costs, outer_scores
from recbole_llm.coreset.goracs.exchange import Kept, Refined, promising_pairs, refine, refine_twice
from recbole_llm.coreset.goracs.pool import refine_in_pools
from recbole_llm.coreset.goracs.reference import reference_pairs
from recbole_llm.coreset.goracs.settings import GoracsSettings
from recbole_llm.coreset.goracs.start import fill_by_capacity, greedy_start, relaxed_greedy
from recbole_llm.coreset.goracs.transport import dual_facts

log = logging.getLogger(__name__)


class Search(NamedTuple):
    """What the search for one class found.

    Attributes:
        members: int64 ``[budget]``.
        starts: objective at the start and after every exchange, by name of the start; the best is what was kept.
        n_solves: transports solved.
        n_nearest: rows that are the nearest of at least one validation row.
        n_considered: rows that could be selected.
        missed_gain: by how much a row that could not be exchanged scores better than all that could; 0 if exact.
        scores: float64 ``[n_train]``, minus the marginal cost of each row: larger is better.
    """

    members: np.ndarray
    starts: dict[str, tuple[float, ...]]
    n_solves: int
    n_nearest: int
    n_considered: int
    missed_gain: float
    scores: np.ndarray


def search(costs: Costs, budget: int, settings: GoracsSettings, exact: bool, seed: int) -> Search:
    """Select rows of one class; a single row, the nearest to all on average, always among all rows.

    Args:
        costs: ``[n_train, n_valid]``.
        budget: 1 to n_train.
        settings: settings of the search.
        exact: whether every row is considered.
        seed: seed of the sample of the approximate way.
    """
    return (
        _search_all(costs, budget, settings) if exact or budget == 1 else _search_pools(costs, budget, settings, seed)
    )


def _search_all(costs: Costs, budget: int, settings: GoracsSettings) -> Search:
    start, n_nearest = _start(costs, budget, settings)
    if settings.compat == "reference" or settings.start == "capacity":
        ranked = reference_pairs if settings.compat == "reference" else promising_pairs
        pairs = functools.partial(ranked, n_candidates=settings.n_candidates)
        refined = refine(costs, start, settings.max_exchanges, pairs)
        kept = Kept(refined, {settings.start: refined.trace}, refined.n_solves)
    else:
        pairs = functools.partial(promising_pairs, n_candidates=settings.n_candidates)
        kept = refine_twice(costs, start, settings.max_exchanges, pairs)
    scores = final_scores(costs, kept.refined)
    return Search(kept.refined.members, kept.starts, kept.n_solves, n_nearest, costs.shape[0], 0.0, scores)


def _start(costs: Costs, budget: int, settings: GoracsSettings) -> tuple[np.ndarray, int]:
    if budget == costs.shape[0]:
        return np.arange(budget), 0
    if settings.start == "capacity" and budget > 1:
        return fill_by_capacity(costs, np.zeros(0, dtype=np.int64), budget), 0
    if settings.compat == "reference":
        greedy = relaxed_greedy(costs, budget)
        others = np.setdiff1d(np.arange(costs.shape[0]), greedy.members)
        return np.concatenate([greedy.members, others])[:budget], greedy.n_nearest
    greedy = greedy_start(costs, budget)
    return greedy.members, greedy.n_nearest


def _search_pools(costs: Costs, budget: int, settings: GoracsSettings, seed: int) -> Search:
    found = refine_in_pools(
        costs,
        budget,
        settings.max_exchanges,
        settings.n_candidates,
        settings.pool_rows(*costs.shape, budget),
        np.random.default_rng(seed),
    )
    members = found.kept.refined.members
    scores = final_scores(costs, found.kept.refined)
    outside = np.ones(len(scores), dtype=bool)
    outside[found.pool] = False
    inside = np.setdiff1d(found.pool, members)
    missed = max(0.0, scores[outside].max() - scores[inside].max()) if outside.any() and len(inside) else 0.0
    return Search(
        members, found.kept.starts, found.kept.n_solves, found.n_nearest, len(found.pool), float(missed), scores
    )


def final_scores(costs: Costs, refined: Refined) -> np.ndarray:
    """Minus what each row costs beside the members, and each member beside the others; float64 ``[n_train]``."""
    own = costs.rows(refined.members)
    if len(own) == 1:
        means: np.ndarray = np.concatenate([block.mean(axis=1, dtype=np.float64) for _, block in costs.blocks()])
        return -means
    potentials = refined.transport.potentials - refined.transport.potentials.mean()
    duals = dual_facts(own, potentials)
    scores = -outer_scores(costs, duals.nearest, len(own))
    scores[refined.members] = duals.removal - refined.transport.value
    return scores
