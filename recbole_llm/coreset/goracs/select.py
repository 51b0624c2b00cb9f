"""GORACS: rows that are together close to the validation rows, with large gradients (Mei et al., arXiv 2506.04015)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from recbole_llm.arrays import Array, like, to_numpy
from recbole_llm.coreset.checks import checked_count, checked_counts, checked_vectors
from recbole_llm.coreset.goracs.classes import class_budgets
from recbole_llm.coreset.goracs.costs import Costs, Distances
from recbole_llm.coreset.goracs.search import Search, search
from recbole_llm.coreset.goracs.settings import GoracsSettings
from recbole_llm.coreset.labels import checked_labels
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GoracsInfo:
    """How a selection came about.

    Attributes:
        method: ``exact`` or ``approximate``: what ran.
        objective: objective of the selection, of distances and norms as they were scaled; over classes the mean,
            weighted by their validation rows.
        trace: objective after the start that was kept and after every exchange; never rises.
        starts: per class and name of a start, its own trace.
        n_solves: transports solved.
        n_nearest: per class, training rows that are the nearest of at least one validation row.
        n_considered: rows that could be selected.
        missed_gain: by how much, by the potentials, a row outside the pool would have been better to exchange
            for than any inside; 0 for the exact way.
        budgets: rows selected per class.
        scores: float64 ``[n_train]``, minus the marginal cost of each row in the end: larger is better.
        seconds: seconds of the distances and of the search.
    """

    method: str
    objective: float
    trace: tuple[float, ...]
    starts: Mapping[Any, Mapping[str, tuple[float, ...]]]
    n_solves: int
    n_nearest: Mapping[Any, int]
    n_considered: int
    missed_gain: float
    budgets: Mapping[Any, int]
    scores: np.ndarray
    seconds: Mapping[str, float]


def goracs_select(
    train_embeddings: Array,
    valid_embeddings: Array,
    gradient_norms: Array | None,
    budget: int,
    gradient_weight: float,
    max_exchanges: int = 100,
    n_candidates: int = 30,
    train_labels: Array | None = None,
    valid_labels: Array | None = None,
    scale_distances: bool = True,
    scale_norms: bool = True,
    seed: int = 0,
    return_info: bool = False,
    **settings: Any,
) -> Any:
    """Select training rows by group: near the validation rows in optimal transport, with large gradients.

    A greedy start on a relaxed objective, then exchanges ranked by dual potentials (GORACS, algorithm 1). With labels,
    each class is selected on its own, in the shares of the validation rows (algorithm 2). The published code ranks
    exchanges by the wrong tail of the reduced costs; here the closed form of theorem 4.3 does
    (``compat="reference"`` for the former). Where no exchange is found before the allowed number is used up, what is
    left of it goes to a second start, and the better result counts.

    Args:
        train_embeddings: ``[n_train, d]``.
        valid_embeddings: ``[n_valid, d]``.
        gradient_norms: ``[n_train]``, >= 0; None where ``gradient_weight`` is 0.
        budget: rows to select, 1 to n_train.
        gradient_weight: lambda, >= 0.
        max_exchanges: >= 0; 0 gives the start.
        n_candidates: see :class:`GoracsSettings`.
        train_labels: ``[n_train]``, of a click task; given together with ``valid_labels`` or not at all.
        valid_labels: ``[n_valid]``.
        scale_distances: divide the distances by the largest of all.
        scale_norms: divide the gradient norms by the largest of all.
        seed: seed of the sample of the approximate way; the exact way draws nothing.
        return_info: also return a :class:`GoracsInfo`.
        **settings: other fields of :class:`GoracsSettings`.

    Returns:
        int64 ``[budget]``, sorted indices of the type of ``train_embeddings``; with ``return_info`` a pair.

    Raises:
        InputError: shapes do not fit, a value is not finite, or a setting is out of range.

    Example:
        >>> train, valid = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]]), np.array([[0.0], [5.0]])
        >>> goracs_select(train, valid, gradient_norms=[1, 1, 1, 1, 1], budget=2, gradient_weight=0.1)
        array([0, 2])
    """
    options = GoracsSettings(
        gradient_weight,
        max_exchanges,
        n_candidates,
        scale_distances=scale_distances,
        scale_norms=scale_norms,
        **settings,
    )
    train, valid = checked_pair(train_embeddings, valid_embeddings)
    norms = checked_norms(gradient_norms, len(train), options)
    labels = _both_labels(train_labels, valid_labels, len(train), len(valid))
    if checked_count("coreset budget", budget, low=1) > len(train):
        raise InputError(f"coreset budget: {budget} rows cannot be selected from {len(train)}")
    chosen, info = select_rows(train, valid, norms, budget, options, labels, seed)
    found = like(chosen, train_embeddings)
    return (found, info) if return_info else found


class Labels(NamedTuple):
    """Classes of both sides.

    Attributes:
        train: ``[n_train]``.
        valid: ``[n_valid]``.
    """

    train: np.ndarray
    valid: np.ndarray


def select_rows(
    train: np.ndarray,
    valid: np.ndarray,
    norms: np.ndarray,
    budget: int,
    settings: GoracsSettings,
    labels: Labels,
    seed: int,
) -> tuple[np.ndarray, GoracsInfo]:
    """:func:`goracs_select` on values that were checked; the norms are those that count, scaled or not."""
    started = time.perf_counter()
    exact = settings.is_exact(len(train), len(valid))
    if not exact:
        log.info("GORACS: using the approximate search: %s", settings.why_approximate(len(train), len(valid)))
    distances = Distances(train, valid, dense=exact and settings.fits(len(train), len(valid)))
    if settings.scale_distances and not distances.scale_by_largest():
        log.warning("GORACS: all distances are 0; they are not scaled.")
    costs = Costs(distances, settings.gradient_weight * norms)
    ready = time.perf_counter()
    classes, budgets = class_budgets(labels.train, labels.valid, budget)
    whole = len(classes) == 1 and bool((labels.train == classes[0]).all())
    if not whole:
        distances.table = None  # each class makes its own, one at a time
    found: dict[Any, Search] = {}
    members: list[np.ndarray] = []
    scores = np.full(len(train), np.nan)
    for label, own_budget in zip(classes.tolist(), budgets.tolist(), strict=True):
        rows, columns = np.flatnonzero(labels.train == label), np.flatnonzero(labels.valid == label)
        if not own_budget:
            continue
        dense = exact and settings.fits(len(rows), len(columns))
        found[label] = search(costs if whole else costs.part(rows, columns, dense), own_budget, settings, exact, seed)
        members.append(rows[found[label].members])
        scores[rows] = found[label].scores
    members.append(_rest(members, norms, budget))
    scores[np.isnan(scores)] = np.nanmin(scores) if found else 0.0
    seconds = {"distances": ready - started, "search": time.perf_counter() - ready}
    info = _report(found, labels.valid, "exact" if exact else "approximate", scores, seconds)
    return np.sort(np.concatenate(members)), info


def _rest(members: list[np.ndarray], norms: np.ndarray, budget: int) -> np.ndarray:
    """Rows of classes that no validation row has, by their norms, as far as the other classes are not enough."""
    free = np.ones(len(norms), dtype=bool)
    for rows in members:
        free[rows] = False
    missing = budget - np.count_nonzero(~free)
    if missing:
        log.warning("GORACS: %d rows are taken from classes that no validation row has.", missing)
    rest = np.flatnonzero(free)
    largest: np.ndarray = rest[np.argsort(-norms[rest], kind="stable")[:missing]]
    return largest


def _report(
    found: Mapping[Any, Search], valid_labels: np.ndarray, method: str, scores: np.ndarray, seconds: Mapping[str, float]
) -> GoracsInfo:
    """All classes together; exchanges are listed in the order of the classes."""
    weights = {label: float(np.mean(valid_labels == label)) for label in found}
    kept = {label: min(result.starts.values(), key=lambda trace: trace[-1]) for label, result in found.items()}
    trace = [sum(weights[label] * own[0] for label, own in kept.items())]
    for label, own in kept.items():
        trace += [trace[-1] + weights[label] * step for step in np.cumsum(np.diff(own)).tolist()]
    info = GoracsInfo(
        method=method,
        objective=sum(weights[label] * own[-1] for label, own in kept.items()),
        trace=tuple(trace),
        starts={label: result.starts for label, result in found.items()},
        n_solves=sum(result.n_solves for result in found.values()),
        n_nearest={label: result.n_nearest for label, result in found.items()},
        n_considered=sum(result.n_considered for result in found.values()),
        missed_gain=max((result.missed_gain for result in found.values()), default=0.0),
        budgets={label: len(result.members) for label, result in found.items()},
        scores=scores,
        seconds=seconds,
    )
    log.info(
        "GORACS, %s: %d rows of %d considered; objective %.6f at the start, %.6f after %d exchanges, with %d "
        "transports solved; %.1f s for distances, %.1f s for the search; best estimated gain outside the pool: %.2g",
        *(method, sum(info.budgets.values()), info.n_considered, trace[0], info.objective, len(trace) - 1),
        *(info.n_solves, seconds["distances"], seconds["search"], info.missed_gain),
    )
    return info


def checked_pair(train: Array, valid: Array) -> tuple[np.ndarray, np.ndarray]:
    """Vectors ``[n_train, d]`` and ``[n_valid, d]``, at least one each."""
    first, second = (
        checked_vectors(name, values, np.arange(len(values)))
        for name, values in (("train_embeddings", to_numpy(train)), ("valid_embeddings", to_numpy(valid)))
    )
    if not len(first) or not len(second):
        raise InputError("GORACS needs at least one training and one validation row", kind="missing")
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"train_embeddings are {first.shape[1]} wide and valid_embeddings {second.shape[1]}; use one encoder",
            kind="conflict",
            about="valid_embeddings",
        )
    return first, second


def checked_norms(norms: Array | None, n_rows: int, settings: GoracsSettings) -> np.ndarray:
    """float64 ``[n_rows]``, scaled where asked for."""
    if norms is None:
        if settings.gradient_weight:
            raise InputError(
                "gradient_norms are missing; give them, or gradient_weight 0", kind="missing", about="gradient_norms"
            )
        return np.zeros(n_rows)
    values = checked_counts("gradient_norms", norms, np.arange(n_rows))
    largest = values.max()
    if settings.scale_norms and not largest:
        log.warning("GORACS: all gradient norms are 0 and have no effect.")
    return values / largest if settings.scale_norms and largest else values


def _both_labels(train: Array | None, valid: Array | None, n_train: int, n_valid: int) -> Labels:
    """Labels per row; one class where there are none."""
    if (train is None) != (valid is None):
        raise InputError(
            "GORACS needs the labels of training and of validation rows, or neither",
            kind="missing",
            about="train_labels",
        )
    if train is None or valid is None:
        return Labels(np.zeros(n_train, dtype=np.int64), np.zeros(n_valid, dtype=np.int64))
    return Labels(
        checked_labels("train_labels", train, np.arange(n_train)),
        checked_labels("valid_labels", valid, np.arange(n_valid)),
    )
