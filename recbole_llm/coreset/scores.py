"""From scores to rows: scaling and combining, equal-width strata, allocation of a budget, sampling.

Coverage-centric selection (CCS, arXiv 2210.15809) as DEALRec (arXiv 2401.17197, section 3.3) uses it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from recbole_llm.arrays import Array, like
from recbole_llm.coreset.checks import (
    checked_budget,
    checked_count,
    checked_number,
    checked_ratio,
    checked_scores,
    share_of,
)
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)

SCALINGS = ("minmax", "rank", "clip")
PRUNED = -1  # the stratum of a row that was cut before the strata were made
_CLIP = (1.0, 99.0)  # percentiles


def combine_scores(influence: Array, effort: Array, weight: float, *, scaling: str = "minmax") -> Any:
    """One score per row: ``scale(influence) + weight * scale(effort)`` (DEALRec, equation 13).

    Raw influence vanishes beside effort, since it carries a factor 1/n; both are therefore brought to [0, 1] over all
    rows, which the paper leaves out and its code does.

    Args:
        influence: ``[n]``, larger is more useful.
        effort: ``[n]``, larger is harder for the LLM; of the same rows.
        weight: lambda, >= 0.
        scaling: see :func:`scale_scores`.

    Returns:
        float64 ``[n]`` of the type of ``influence``.

    Raises:
        InputError: lengths differ, a score is NaN or infinite, or a setting is out of range.

    Example:
        >>> combine_scores([0.0, 0.001, 0.002], [5.0, 3.0, 1.0], weight=0.5).tolist()
        [0.5, 0.75, 1.0]
    """
    weight = checked_number("coreset weight", weight)
    first, second = checked_scores("influence", influence), checked_scores("effort", effort)
    if len(first) != len(second):
        raise InputError(
            f"influence has {len(first)} rows and effort {len(second)}; score the same rows", kind="conflict"
        )
    return like(scale_scores(first, scaling) + weight * scale_scores(second, scaling), influence)


def scale_scores(scores: Array, scaling: str = "minmax") -> Any:
    """Scores brought to [0, 1]; zeros where all are equal, or where their range is no number.

    Args:
        scores: ``[n]``.
        scaling: ``minmax``; ``rank`` (mean ranks, on which an outlier has no effect beyond its rank); or ``clip``,
            min-max after what lies outside the 1st to 99th percentile is moved there.

    Returns:
        float64 ``[n]`` of the type of ``scores``.

    Example:
        >>> scale_scores([1.0, 2.0, 11.0]).tolist(), scale_scores([1.0, 2.0, 11.0], "rank").tolist()
        ([0.0, 0.1, 1.0], [0.0, 0.5, 1.0])
    """
    if scaling not in SCALINGS:
        raise InputError(f"coreset scaling {scaling!r} is unknown; choose one of {', '.join(SCALINGS)}", kind="unknown")
    values = checked_scores("scores", scores)
    if not len(values):
        return like(values, scores)
    if scaling == "rank":
        from scipy.stats import rankdata

        values = rankdata(values)
    elif scaling == "clip":
        values = np.clip(values, *np.percentile(values, _CLIP))
    low, spread = values.min(), _spread(values)
    return like((values - low) / spread if spread else np.zeros_like(values), scores)


def resolve_budget(n_rows: int, budget: int | None = None, ratio: float | None = None) -> int:
    """Rows to select, given as a number or as a share.

    Args:
        n_rows: rows there are.
        budget: number of rows to choose, >= 0.
        ratio: which share, in [0, 1]: floor(ratio * n_rows).

    Raises:
        InputError: both or neither are given, or one is out of range.

    Example:
        >>> resolve_budget(1000, ratio=0.29), resolve_budget(1000, budget=64)
        (290, 64)
    """
    n_rows = checked_count("coreset rows", n_rows)
    if (budget is None) == (ratio is None):
        raise InputError("coreset: give either a budget (a count) or a ratio (a share)", kind="conflict")
    if ratio is None:
        return checked_count("coreset budget", budget)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float | np.number) or not 0 <= ratio <= 1:
        raise InputError(f"coreset ratio: {ratio!r} is not allowed; give a number in [0, 1]")
    return share_of(ratio, n_rows)


def score_strata(scores: Array, n_groups: int, hard_prune_ratio: float = 0.0) -> np.ndarray:
    """Stratum of every row: equal-width intervals over the scores that remain after the highest are cut.

    Stratum b is ``(min + b w, min + (b + 1) w]`` with ``w = (max - min) / n_groups``; the minimum is in stratum 0, and
    rounding of an edge never puts the maximum outside the last.

    Args:
        scores: ``[n]``.
        n_groups: K >= 1.
        hard_prune_ratio: share of the rows, those with the highest scores, that is cut; in [0, 1).

    Returns:
        int64 ``[n]``: 0 to K - 1, or -1 for a row that is cut.

    Example:
        >>> score_strata([0.0, 1.0, 2.0, 3.0, 9.0], n_groups=3, hard_prune_ratio=0.2).tolist()
        [0, 0, 1, 2, -1]
    """
    values = checked_scores("scores", scores)
    n_groups = checked_count("coreset groups", n_groups, low=1)
    n_cut = share_of(checked_ratio("hard_prune_ratio", hard_prune_ratio), len(values))
    strata = np.full(len(values), PRUNED)
    kept = np.sort(np.argsort(-values, kind="stable")[n_cut:])
    if not len(kept):
        return strata
    remaining = values[kept]
    spread = _spread(remaining)
    if not spread:
        strata[kept] = 0
        return strata
    edges = remaining.min() + np.arange(1, n_groups + 1) * (spread / n_groups)
    strata[kept] = np.minimum(np.searchsorted(edges, remaining, side="left"), n_groups - 1)
    return strata


def allocate_budget(group_sizes: Array, budget: int) -> list[int]:
    """How many rows each group gives: the smallest first, each at most an equal share of what is left.

    With m rows still to give and g non-empty groups left, the smallest one (of equal ones the first) gives
    ``min(size, floor(m / g))``. The sum is ``min(budget, sum of sizes)``, exactly.

    Args:
        group_sizes: int ``[groups]``, >= 0.
        budget: rows to give, >= 0.

    Returns:
        Rows of each group, in the order of the groups.

    Raises:
        InputError: a size or the budget is no integer >= 0.

    Example:
        >>> allocate_budget([1, 100, 8, 0], budget=20)
        [1, 11, 8, 0]
    """
    sizes = [checked_count("coreset group size", size) for size in list(cast(Iterable[object], group_sizes))]
    left = checked_count("coreset budget", budget)
    taken = [0] * len(sizes)
    order = sorted((group for group, size in enumerate(sizes) if size), key=lambda group: sizes[group])
    for done, group in enumerate(order):
        taken[group] = min(sizes[group], left // (len(order) - done))
        left -= taken[group]
    return taken


def stratified_sample(scores: Array, budget: int, n_groups: int, hard_prune_ratio: float = 0.0, seed: int = 0) -> Any:
    """Rows drawn so that all levels of the score are covered (DEALRec, Algorithm 2; CCS, arXiv 2210.15809).

    The draw goes by the order of the scores, and so permuting rows with distinct scores permutes the result.

    Args:
        scores: ``[n]``, larger is better.
        budget: rows wanted; where fewer remain all of them are taken, with a warning.
        n_groups: strata of equal width, see :func:`score_strata`.
        hard_prune_ratio: share of the highest scores that is cut first.
        seed: seed of the draw, which depends on no other random state.

    Returns:
        int64, sorted indices of the chosen rows, of the type of ``scores``.

    Raises:
        InputError: a score is not finite, or a setting is out of range.

    Example:
        >>> stratified_sample(np.linspace(0, 1, 10), budget=4, n_groups=2, hard_prune_ratio=0.2)
        array([2, 3, 4, 5])
    """
    values = checked_scores("scores", scores)
    strata = score_strata(values, n_groups, hard_prune_ratio)
    budget = checked_budget(budget, int((strata != PRUNED).sum()))
    ascending = np.argsort(values, kind="stable")
    ascending = ascending[strata[ascending] != PRUNED]
    sizes = np.bincount(strata[ascending], minlength=n_groups)
    members = np.split(ascending, np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(seed)
    drawn = [
        rng.choice(rows, size=count, replace=False)
        for rows, count in zip(members, allocate_budget(sizes, budget), strict=True)
        if count
    ]
    return like(np.sort(np.concatenate(drawn)) if drawn else np.zeros(0, dtype=np.int64), scores)


def _spread(values: np.ndarray) -> float:
    """max - min, or 0 where that is no finite number."""
    with np.errstate(over="ignore"):
        spread = values.max() - values.min()
    return float(spread) if np.isfinite(spread) else 0.0
