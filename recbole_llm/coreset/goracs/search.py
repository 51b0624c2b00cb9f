"""Settings of GORACS, and its search for one class of rows: start, exchanges, and what they cost."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from recbole_llm.coreset.goracs.costs import Costs, outer_scores, rows_that_fit, table_bytes
from recbole_llm.coreset.goracs.exchange import Kept, Refined, promising_pairs, refine, refine_twice
from recbole_llm.coreset.goracs.pool import refine_in_pools
from recbole_llm.coreset.goracs.reference import reference_pairs
from recbole_llm.coreset.goracs.start import fill_by_capacity, greedy_start, relaxed_greedy
from recbole_llm.coreset.goracs.transport import dual_facts
from recbole_llm.declare import Declared, Setting
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class GoracsSettings(Declared):
    """How GORACS searches (arXiv 2506.04015).

    Attributes:
        gradient_weight: lambda, >= 0, of the gradient norms, which count in favour of a row; the authors' examples use
            0.1 for next items and 0.5 for clicks.
        max_exchanges: exchanges of one selected row for another, >= 0 (per class); 100 and 20 in the authors' examples.
        n_candidates: selected rows and other rows that are compared in search of an exchange, each >= 1, and four times
            as many where no exchange improves; 30 and 3 there.
        method: ``exact`` considers every row; ``approximate`` searches in pools of rows and needs a few passes over
            all; ``auto`` is exact where a table of all costs fits into ``table_gib``.
        pool_size: rows of a pool of the approximate way, >= 1; fewer where two pools do not fit into one table, but at
            least twice the budget.
        table_gib: memory that one table of costs may take, > 0; without a table the exact way computes costs again by
            blocks whenever it needs them.
        start: ``greedy`` as in the paper, or ``capacity``, where each row serves its full share of validation rows
            (exact way only).
        scale_distances: divide the distances by the largest.
        scale_norms: divide the gradient norms by the largest.
        compat: ``reference`` repeats the authors' code, which ranks exchanges by another score and in another order and
            fills up with the first rows once none gains.
    """

    gradient_weight: Annotated[
        float, Setting("lambda of the gradient norms beside the distances", low=0, note="0 computes none")
    ] = 0.1
    max_exchanges: Annotated[
        int, Setting("exchanges after the greedy start", low=0, note="in each class of a click task")
    ] = 100
    n_candidates: Annotated[int, Setting("chosen and other rows that are compared in search of an exchange", low=1)] = (
        30
    )
    method: Annotated[
        str,
        Setting(
            "which rows are searched",
            choices={
                "auto": "exact where a table of all costs fits",
                "exact": "all rows",
                "approximate": "pools of rows",
            },
        ),
    ] = "auto"
    pool_size: Annotated[
        int,
        Setting(
            "rows of a pool of the approximate method",
            low=1,
            note="fewer where two pools exceed goracs_table_gib, at least twice as many as are chosen",
        ),
    ] = 16384
    table_gib: Annotated[
        float, Setting("memory that a table of costs may take, in GiB", above=0, note="4 bytes a cost")
    ] = 1.0
    start: Annotated[
        str,
        Setting(
            "start of the exact method",
            choices={"greedy": "the paper's", "capacity": "each row serves its share of validation rows"},
        ),
    ] = "greedy"
    scale_distances: Annotated[bool, Setting("divide the distances by the largest")] = True
    scale_norms: Annotated[bool, Setting("divide the gradient norms by the largest")] = True
    compat: Annotated[
        str,
        Setting(
            "whose procedure",
            choices={"none": "", "reference": "the paper's code: other ranking and order of exchanges"},
        ),
    ] = "none"

    prefix: ClassVar[str] = "goracs_"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compat == "reference" and self.method == "approximate":
            raise InputError("goracs_method", "approximate has no counterpart in the authors' code; use exact")

    def fits(self, n_train: int, n_valid: int) -> bool:
        """Whether a table of all costs may be made."""
        return table_bytes(n_train, n_valid) <= self.table_gib * 2**30

    def why_approximate(self, n_train: int, n_valid: int) -> str:
        """The reason, for a line of the log, where not every row is considered."""
        if self.method == "approximate":
            return "goracs_method is approximate"
        return f"a {n_train} x {n_valid} cost table exceeds goracs_table_gib ({self.table_gib:g})"

    def pool_rows(self, n_train: int, n_valid: int, budget: int) -> int:
        """Rows of a pool; two are searched at once."""
        wanted = min(max(self.pool_size, 2 * budget), n_train)
        fitting = rows_that_fit(n_valid, self.table_gib * 2**30)
        if min(2 * wanted, n_train) <= fitting:
            return wanted
        if 2 * budget <= fitting // 2:
            log.info("GORACS: pools of %d rows, not %d, as two fit into goracs_table_gib.", fitting // 2, wanted)
            return fitting // 2
        smallest = min(2 * budget, n_train)
        needed = table_bytes(min(2 * smallest, n_train), n_valid) / 2**30
        log.warning(
            "GORACS: two pools of twice the budget, %d rows each, take %.2g GiB, more than goracs_table_gib (%g).",
            *(smallest, needed, self.table_gib),
        )
        return smallest

    def is_exact(self, n_train: int, n_valid: int) -> bool:
        """Whether every row is considered."""
        if self.method == "auto":
            return self.compat == "reference" or self.fits(n_train, n_valid)
        return self.method == "exact"


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
        settings: of the search.
        exact: whether every row is considered.
        seed: of the sample of the approximate way.
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
