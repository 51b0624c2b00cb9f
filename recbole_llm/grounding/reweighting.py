"""Re-weighting of grounding distances by popularity or by a conventional recommender (BIGRec, section 3.3, 2308.08434).

The distances of one query are brought to [0, 1] and divided by a power of one plus the item's weight:

    D^_i = (D_i - min D) / (max D - min D)          D~_i = D^_i (1 + W_i)^(-gamma)          smaller is better

The nearest item keeps ``D~ = 0`` and stays first whatever gamma is; ``gamma = 0`` is the plain ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from recbole_llm.arrays import Array, like, to_float, to_numpy
from recbole_llm.grounding.rank_metrics import RANK_METRICS

POPULARITY_GAMMAS: tuple[float, ...] = tuple(float(gamma) for gamma in range(100))
COLLABORATIVE_GAMMAS: tuple[float, ...] = tuple(step / 100 for step in range(100)) + POPULARITY_GAMMAS[1:]

Metric = tuple[str, int] | Callable[[np.ndarray], float]

_BLOCK_ELEMENTS = 2**18  # of one temporary array: 2 MB, which stay in the cache


def reweight(distances: Array, weights: Array, gamma: float) -> Any:
    """Re-weights distances; a row whose distances are all equal becomes 0.

    Args:
        distances: ``[queries, items]``; +inf marks items that are not rankable, which are left out and stay +inf.
        weights: ``[items]`` or ``[queries, items]``, in [0, 1]; see ``popularity_weights``, ``collaborative_weights``.
        gamma: strength, 0 for none.

    Returns:
        ``[queries, items]`` of the type of ``distances``, smaller is better.

    Raises:
        ValueError: shapes do not fit, a weight is negative or not finite, a distance is NaN or -inf.

    Example:
        >>> reweight(np.array([[1.0, 2.0, 3.0]]), weights=[0.0, 0.0, 1.0], gamma=1.0).tolist()
        [[0.0, 0.5, 0.5]]
    """
    table, boost_base = _checked(distances, weights)
    return like(_apply(_normalised(table), _boost(boost_base, gamma), table.dtype), distances)


def popularity_weights(counts: Array, rankable: Array | None = None) -> Any:
    """Share of each item in the training interactions, brought to [0, 1] over the catalogue.

    Args:
        counts: ``[items]``, training interactions per item.
        rankable: bool ``[items]``, the items that make up the catalogue; the others (padding) get weight 0. By default
            all items.

    Returns:
        float64 ``[items]`` of the type of ``counts``; 0 everywhere if all counts are equal.

    Example:
        >>> popularity_weights([0, 10, 20], rankable=[False, True, True]).tolist()
        [0.0, 0.0, 1.0]
    """
    table = to_numpy(counts).astype(np.float64)
    mask = np.ones(len(table), dtype=bool) if rankable is None else to_numpy(rankable)
    if table.ndim != 1 or mask.shape != table.shape or mask.dtype != bool:
        raise ValueError(
            f"counts must be [items] and rankable bool [items], got {list(table.shape)}, {list(mask.shape)}"
        )
    if not np.isfinite(table).all() or (table < 0).any():
        raise ValueError("counts must be finite and not negative")
    total = table[mask].sum()
    share = np.where(mask, table / total if total else 0.0, np.nan)
    return like(_min_max(share[None], ignore=~mask[None], fill=0.0)[0], counts)


def collaborative_weights(scores: Array) -> Any:
    """Scores of a conventional recommender, brought to [0, 1] per query.

    Args:
        scores: ``[queries, items]``, larger is better; -inf (masked items) is left out and gets weight 0.

    Returns:
        ``[queries, items]`` of the type of ``scores``; 0 in a row whose scores are all equal.

    Example:
        >>> collaborative_weights(np.array([[-np.inf, 1.0, 3.0]])).tolist()
        [[0.0, 0.0, 1.0]]
    """
    table = to_float(scores)
    if table.ndim != 2:
        raise ValueError(f"scores must be [queries, items], got {list(table.shape)}")
    if np.isnan(table).any() or (table == np.inf).any():
        raise ValueError("scores must not be NaN or +inf")
    return like(_min_max(table, ignore=table == -np.inf, fill=0.0).astype(table.dtype), scores)


def gamma_ranks(distances: Array, weights: Array, targets: Array, gammas: Sequence[float]) -> np.ndarray:
    """Ranks of the targets under every gamma, as ``reweight`` and the lower-id rule would give them.

    Args:
        distances: ``[queries, items]``; +inf marks items that do not compete.
        weights: ``[items]`` or ``[queries, items]``.
        targets: int ``[queries]``, ids of items that compete (a representative, where titles are shared).
        gammas: the strengths to try.

    Returns:
        int64 ``[gammas, queries]``, 0-based ranks.

    Example:
        >>> gamma_ranks([[1.0, 2.0, 3.0]], weights=[0.0, 0.0, 1.0], targets=[2], gammas=[0.0, 3.0]).tolist()
        [[2], [1]]
    """
    table, weight = _checked(distances, weights)
    ids = to_numpy(targets)
    if ids.shape != (len(table),) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"targets must be int [{len(table)}], one per query, got {ids.dtype} {list(ids.shape)}")
    if (ids < 0).any() or (ids >= table.shape[1]).any() or not np.isfinite(table[np.arange(len(ids)), ids]).all():
        raise ValueError("every target must be an item with a finite distance")
    ranks = np.empty((len(gammas), len(ids)), dtype=np.int64)
    shared = [_boost(weight, gamma) for gamma in gammas] if weight.ndim == 1 else None
    step = max(1, _BLOCK_ELEMENTS // table.shape[1])
    for block in (slice(start, start + step) for start in range(0, len(ids), step)):
        normalised = _normalised(table[block])
        for index, gamma in enumerate(gammas):
            boost = shared[index] if shared else _boost(weight[block], gamma)
            ranks[index, block] = _ranks(_apply(normalised, boost, table.dtype), ids[block])
    return ranks


def search_gamma(
    distances: Array,
    weights: Array,
    targets: Array,
    metrics: Mapping[str, Metric] | Iterable[tuple[str, int]],
    gammas: Sequence[float] = POPULARITY_GAMMAS,
) -> dict[str, float]:
    """Chooses gamma on validation queries, for each metric and cut-off on its own.

    Args:
        distances: ``[queries, items]``, as for ``reweight``.
        weights: ``[items]`` or ``[queries, items]``.
        targets: int ``[queries]``.
        metrics: name and cut-off pairs such as ``("ndcg", 10)``, then labelled ``ndcg@10``, or a mapping from labels to
            such pairs or to functions from ranks ``[queries]`` to a number, larger is better.
        gammas: strengths to try, in this order: ``POPULARITY_GAMMAS``, ``COLLABORATIVE_GAMMAS`` (the paper's grids).

    Returns:
        The first best gamma of every label; 0 for a metric that is 0 under every gamma, which decides nothing.

    Example:
        >>> distances, weights = [[1.0, 2.0, 3.0]], [0.0, 0.0, 1.0]
        >>> search_gamma(distances, weights, targets=[2], metrics=[("mrr", 3)], gammas=[0.0, 3.0])
        {'mrr@3': 3.0}
    """
    if not isinstance(metrics, Mapping):
        metrics = {f"{name}@{k}": (name, k) for name, k in metrics}
    functions = {label: _metric(metric) for label, metric in metrics.items()}
    ranks = gamma_ranks(distances, weights, targets, gammas)
    if not ranks.size:
        raise ValueError("choosing gamma needs at least one query and one gamma")
    chosen = {}
    for label, function in functions.items():
        values = np.array([function(row) for row in ranks])
        chosen[label] = float(gammas[int(values.argmax())]) if values.any() else 0.0
    return chosen


def _metric(metric: Metric) -> Callable[[np.ndarray], float]:
    if callable(metric):
        return metric
    name, k = metric
    if name.lower() not in RANK_METRICS:
        raise ValueError(f"no metric {name!r}: use one of {', '.join(RANK_METRICS)}, or a function of the ranks")
    per_row = RANK_METRICS[name.lower()]
    return lambda ranks: float(per_row(ranks, k).mean())


def _ranks(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """0-based ranks ``[queries]`` of the targets in ``values[queries, items]``, smaller first, ties by lower id."""
    own = values[np.arange(len(targets)), targets][:, None]
    queries, columns = np.nonzero(values == own)
    ranks: np.ndarray = np.bincount(queries[columns < targets[queries]], minlength=len(targets))
    ranks += np.count_nonzero(values < own, axis=1)
    return ranks


def _checked(distances: Array, weights: Array) -> tuple[np.ndarray, np.ndarray]:
    table, weight = to_float(distances), to_float(weights)
    if table.ndim != 2 or weight.shape not in (table.shape, table.shape[1:]):
        raise ValueError(
            f"distances must be [queries, items] and weights [items] or [queries, items], "
            f"got {list(table.shape)} and {list(weight.shape)}"
        )
    if np.isnan(table).any() or (table == -np.inf).any():
        raise ValueError("distances must not be NaN or -inf")
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("weights must be finite and not negative")
    return table, weight.astype(np.float64)


def _boost(weights: np.ndarray, gamma: float) -> np.ndarray:
    """``(1 + W)^(-gamma)``, of the shape of ``weights``."""
    with np.errstate(over="ignore"):  # beyond all numbers it is infinite, or 0
        return np.power(1.0 + weights, -float(gamma))


def _normalised(distances: np.ndarray) -> np.ndarray:
    return _min_max(distances, ignore=np.isinf(distances), fill=np.inf)


def _apply(normalised: np.ndarray, boost: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        weighted: np.ndarray = normalised * boost
    # A boost that left the range of numbers moves neither what is not ranked nor the nearest item.
    weighted = np.where(np.isinf(normalised) | (normalised == 0), normalised, weighted)
    return weighted.astype(dtype, copy=False)


def _min_max(values: np.ndarray, ignore: np.ndarray, fill: float) -> np.ndarray:
    """Rows of ``values`` brought to [0, 1] in float64, without the ignored ones, which become ``fill``; constant: 0."""
    values = values.astype(np.float64)
    low = np.where(ignore, np.inf, values).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(ignore, -np.inf, values).max(axis=1, keepdims=True, initial=-np.inf)
    spread = np.where(high > low, high - low, 1.0)
    low = np.where(np.isfinite(low), low, 0.0)
    return np.where(ignore, fill, (np.where(ignore, low, values) - low) / spread)
