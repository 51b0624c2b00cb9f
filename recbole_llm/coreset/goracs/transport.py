"""Optimal transport between a selection and the validation rows, and bounds on exchanges from its potentials.

A selection of n training rows carries mass 1/n on each, the m validation rows 1/m each (GORACS, arXiv 2506.04015). With
row potentials x the best column potentials are f_j = min_s (C_sj - x_s), and both give a lower bound for any selection.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import NamedTuple

import numpy as np

from recbole_llm.arrays import Array, to_numpy
from recbole_llm.coreset.checks import checked_indices, checked_number, checked_scores, checked_vectors
from recbole_llm.errors import InputError

_MAX_PIVOTS = 10**9  # of the simplex, which ends by itself; a limit that is met would give a wrong value
_GAP = 1e-9  # between primal and dual value, where the largest cost is between 1 and 2


def proxy_objective(distances: Array, gradient_norms: Array | None, selected: Array, gradient_weight: float) -> float:
    """How far a selection is from the validation rows, less its weighted mean gradient norm (GORACS, equation 10).

    ``OT(selected, validation) - gradient_weight * mean(gradient_norms[selected])``, both used as they are given;
    smaller is better.

    Args:
        distances: ``[n_train, n_valid]``.
        gradient_norms: ``[n_train]``; None where ``gradient_weight`` is 0.
        selected: int ``[n]``, different row indices, at least one.
        gradient_weight: lambda, >= 0.

    Returns:
        The objective, of the distances' unit.

    Raises:
        InputError: a row is selected twice or does not exist, or a number is not finite.

    Example:
        >>> distances = np.array([[0.0, 4.0], [1.0, 1.0], [4.0, 0.0]])
        >>> proxy_objective(distances, [2.0, 1.0, 2.0], selected=[0, 2], gradient_weight=0.5)
        -1.0
    """
    weight = checked_number("gradient_weight", gradient_weight)
    if gradient_norms is None and weight:
        raise InputError(
            "gradient_norms are missing; give them, or gradient_weight 0", kind="missing", about="gradient_norms"
        )
    table = to_numpy(distances)
    norms = np.zeros(len(table)) if gradient_norms is None else checked_scores("gradient_norms", gradient_norms)
    table = checked_vectors("distances", table, np.arange(len(norms)))
    rows = checked_indices("selected", selected, len(table))
    return solve_transport(table[rows].astype(np.float64)).value - weight * float(norms[rows].mean())


class Transport(NamedTuple):
    """An optimal plan.

    Attributes:
        value: mean cost of the mass moved.
        potentials: float64 ``[n]``, x of the rows; up to a constant, and unique only where the optimum is.
        plan: float64 ``[n, m]``, of sum 1.
    """

    value: float
    potentials: np.ndarray
    plan: np.ndarray


def solve_transport(costs: np.ndarray, potentials: np.ndarray | None = None) -> Transport:
    """Transport between uniform masses by the network simplex of POT, certified by its dual.

    Masses are whole numbers of the largest common unit: sums are then free of rounding, also where many plans are
    optimal. Costs are shifted to begin at 0, as POT finds large negative ones infeasible, and divided to end between 1
    and 2, as its tolerances are absolute; by a power of two, which leaves all digits as they are.

    Args:
        costs: float64 ``[n, m]``, n and m >= 1.
        potentials: ``[n]``, of the rows; near the optimum they save most of the work (POT >= 0.9.7, else without use).

    Raises:
        RuntimeError: the solver did not reach the optimum.
    """
    import ot

    n_rows, n_columns = costs.shape
    unit = math.gcd(n_rows, n_columns)
    total = n_rows * n_columns // unit
    lowest = costs.min()
    scaled = costs - lowest
    largest = float(scaled.max())
    scale = math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 1.0
    scaled /= scale
    start = {}
    if potentials is not None and _takes_potentials():
        rows = potentials / scale
        start["potentials_init"] = (rows, (scaled - rows[:, None]).min(axis=0))
    masses = np.full(n_rows, n_columns / unit), np.full(n_columns, n_rows / unit)
    plan, facts = ot.emd(*masses, scaled, numItermax=_MAX_PIVOTS, log=True, center_dual=False, **start)
    plan /= total
    value, found = float(np.vdot(plan, scaled)), facts["u"]
    dual = found.mean() + (scaled - found[:, None]).min(axis=0).mean()
    if facts["warning"] or value - dual > _GAP:
        raise RuntimeError(f"POT did not solve the transport of {n_rows} x {n_columns} masses: {facts['warning']}")
    return Transport(value * scale + float(lowest), found * scale, plan)


@functools.cache
def _takes_potentials() -> bool:
    import ot

    return "potentials_init" in inspect.signature(ot.emd).parameters


class Duals(NamedTuple):
    """Column potentials of a selection, and of it without one of its members.

    Attributes:
        nearest: ``[m]``, f_j, of all members.
        second: ``[m]``, f_j where the nearest member is gone.
        owner: int ``[m]``, index of the nearest member.
        removal: ``[n]``, K_i: dual value of the selection without member i, masses as they were.
    """

    nearest: np.ndarray
    second: np.ndarray
    owner: np.ndarray
    removal: np.ndarray

    def without(self, index: int) -> np.ndarray:
        """``[m]``: column potentials without the member at ``index``."""
        return np.where(self.owner == index, self.second, self.nearest)


def dual_facts(costs: np.ndarray, potentials: np.ndarray) -> Duals:
    """What the potentials of a selection say about leaving one member out.

    Args:
        costs: float64 ``[n, m]``, n >= 2.
        potentials: ``[n]``, of the rows.
    """
    n_rows, n_columns = costs.shape
    reduced = costs - potentials[:, None]
    owner = reduced.argmin(axis=0)
    columns = np.arange(n_columns)
    nearest = reduced[owner, columns]
    reduced[owner, columns] = np.inf
    second = reduced.min(axis=0)
    lost = np.bincount(owner, weights=second - nearest, minlength=n_rows)
    removal = potentials.mean() + nearest.mean() - potentials / n_rows + lost / n_columns
    return Duals(nearest, second, owner, removal)


def marginal_costs(reduced: np.ndarray, n_members: int) -> np.ndarray:
    """F: what a row adds to the dual value of a selection (GORACS, theorem 4.3, in closed form).

    1/n times the mean of the reduced costs A_j = C_oj - f_j over the cheapest 1/n of the columns: the maximum over y of
    ``y / n + mean_j min(A_j - y, 0)``, which is reached at the ceil(m / n)-th smallest A_j. For a selection without
    member i, K_i + F bounds the transport after the exchange from below; for member i itself it is the transport.

    Args:
        reduced: float ``[rows, m]``; it is partly sorted in place.
        n_members: n, of the selection with the row.

    Returns:
        float64 ``[rows]``.
    """
    n_columns = reduced.shape[1]
    count = -(-n_columns // n_members)
    reduced.partition(count - 1, axis=1)
    whole = reduced[:, : count - 1].sum(axis=1, dtype=np.float64)
    costs: np.ndarray = (whole + (n_columns / n_members - (count - 1)) * reduced[:, count - 1]) / n_columns
    return costs
