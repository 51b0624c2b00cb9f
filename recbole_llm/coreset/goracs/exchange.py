"""GORACS' refinement: exchanges of selected and other rows, ranked by dual potentials (arXiv 2506.04015, alg. 1)."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np

from recbole_llm.coreset.goracs.costs import Costs, outer_scores
from recbole_llm.coreset.goracs.start import fill_by_capacity
from recbole_llm.coreset.goracs.transport import Duals, Transport, dual_facts, marginal_costs, solve_transport

_WIDER = 4  # times as many candidates, where the first are of no use; bounds leave few of their pairs to solve

Pairs = Callable[[Costs, np.ndarray, np.ndarray, Transport], Generator[tuple[int, int], Transport, None]]
"""(costs, members, their costs ``[n, m]``, their transport) -> (index of the member that goes, row that comes); it is
sent the transport after an exchange that was no improvement."""


class Refined(NamedTuple):
    """A selection and how it came about.

    Attributes:
        members: int64 ``[n]``.
        trace: objective of the start and after every exchange, strictly decreasing.
        n_solves: transports solved, that of the start included.
        stuck: no exchange that was tried improves on it.
        transport: transport of the members, in their order.
    """

    members: np.ndarray
    trace: tuple[float, ...]
    n_solves: int
    stuck: bool
    transport: Transport


def refine(
    costs: Costs,
    start: np.ndarray,
    max_exchanges: int,
    pairs: Pairs,
    max_attempts: int | None = None,
) -> Refined:
    """Exchange one member for one other row as long as the transport becomes cheaper.

    Args:
        costs: ``[n_train, n_valid]``.
        start: int ``[n]``, different rows, n >= 1.
        max_exchanges: >= 0.
        pairs: which exchanges to try, such as :func:`promising_pairs`; the first that improves is taken.
        max_attempts: transports solved in search of one exchange; by default all pairs.
    """
    members = np.array(start)
    own = costs.rows(members)
    transport = solve_transport(own)
    trace, n_solves = [transport.value], 1
    stuck = len(members) in (1, costs.shape[0])  # the start is then the best there is
    while len(trace) <= max_exchanges and not stuck:
        stuck = True
        for index, row, trial in itertools.islice(_attempts(costs, members, own, transport, pairs), max_attempts):
            n_solves += 1
            if trial.value < transport.value - smallest_gain(own):
                members[index], own[index], transport = row, costs.rows(np.array([row]))[0], trial
                trace.append(trial.value)
                stuck = False
                break
    return Refined(members, tuple(trace), n_solves, stuck, transport)


def _attempts(
    costs: Costs, members: np.ndarray, own: np.ndarray, transport: Transport, pairs: Pairs
) -> Iterator[tuple[int, int, Transport]]:
    """Every pair with the transport after its exchange."""
    search = pairs(costs, members, own, transport)
    with contextlib.suppress(StopIteration):
        index, row = next(search)
        while True:
            trial = exchanged(costs, own, transport, index, row)
            yield index, row, trial
            index, row = search.send(trial)


class Kept(NamedTuple):
    """The better of one or two searches for exchanges.

    Attributes:
        refined: what the better search found.
        starts: objective at the start and after every exchange, by name of the start.
        n_solves: transports solved, of both.
    """

    refined: Refined
    starts: dict[str, tuple[float, ...]]
    n_solves: int


def refine_twice(
    costs: Costs, start: np.ndarray, max_exchanges: int, pairs: Pairs, max_attempts: int | None = None
) -> Kept:
    """:func:`refine`; where it finds no more exchange, what is left of their number goes to a start by capacity."""
    refined = refine(costs, start, max_exchanges, pairs, max_attempts)
    starts, n_solves = {"greedy": refined.trace}, refined.n_solves
    left = max_exchanges - len(refined.trace) + 1
    if refined.stuck and left and 1 < len(start) < costs.shape[0]:
        second = fill_by_capacity(costs, np.zeros(0, dtype=np.int64), len(start))
        again = refine(costs, second, left, pairs, max_attempts)
        starts["capacity"], n_solves = again.trace, n_solves + again.n_solves
        refined = min(refined, again, key=lambda found: found.trace[-1])
    return Kept(refined, starts, n_solves)


def smallest_gain(own: np.ndarray) -> float:
    """What counts as an improvement, for costs ``[n, m]``."""
    return 1e-12 * float(np.ptp(own))


def exchanged(costs: Costs, own: np.ndarray, transport: Transport, index: int, row: int) -> Transport:
    """Transport after the member at ``index`` gave way to ``row``, from the potentials before."""
    trial, potentials = own.copy(), transport.potentials.copy()
    trial[index] = costs.rows(np.array([row]))[0]
    columns = np.delete(own - potentials[:, None], index, axis=0).min(axis=0)
    potentials[index] = (trial[index] - columns).min()
    return solve_transport(trial, potentials)


def promising_pairs(
    costs: Costs, members: np.ndarray, own: np.ndarray, transport: Transport, n_candidates: int
) -> Generator[tuple[int, int], Transport, None]:
    """Pairs of a costly member and a promising row to exchange, by the lower bound of their transport, lowest first.

    A pair whose bound on the transport after the exchange is no improvement is left out; and what was tried in vain
    raises the bounds of others. Where none of ``n_candidates`` each improves, four times as many are compared.
    """
    duals = dual_facts(own, transport.potentials)
    scores = outer_scores(costs, duals.nearest, len(members))
    scores[members] = np.inf
    n_others = min(_WIDER * n_candidates, costs.shape[0] - len(members))
    others = np.argpartition(scores, n_others - 1)[:n_others]
    others = others[np.argsort(scores[others], kind="stable")]
    leaving = np.argsort(duals.removal, kind="stable")[: _WIDER * n_candidates]
    known = 0
    for size in (n_candidates, _WIDER * n_candidates):
        if known >= max(len(leaving), len(others)):
            return
        rows = costs.rows(others[:size])
        bounds = lower_bounds(rows, duals, leaving[:size], len(members))
        bounds[:known, :known] = np.inf
        while bounds.min() < transport.value - smallest_gain(own):
            member, other = divmod(int(bounds.argmin()), len(rows))
            trial = yield int(leaving[member]), int(others[other])
            raise_bounds(bounds, own, rows, leaving[:size], member, other, trial.potentials)
        known = size


def lower_bounds(rows: np.ndarray, duals: Duals, leaving: np.ndarray, n_members: int) -> np.ndarray:
    """K_i + F(o; f without i): at most the transport after the exchange, exact where a row returns to where it was.

    Args:
        rows: float64 ``[k, m]``, costs of the rows that come in.
        duals: duals of the selection.
        leaving: int ``[p]``, of the members that go.
        n_members: n.

    Returns:
        float64 ``[p, k]``.
    """
    return np.stack([duals.removal[i] + marginal_costs(rows - duals.without(i), n_members) for i in leaving])


def raise_bounds(
    bounds: np.ndarray,
    own: np.ndarray,
    rows: np.ndarray,
    leaving: np.ndarray,
    member: int,
    other: int,
    potentials: np.ndarray,
) -> None:
    """What an exchange that was tried says about those with the same member or the same row.

    Both differ by one row from the selection that was tried, whose potentials bound them as those of the selection
    before do, and mostly closer: they know what it takes to do without that member, or with that row.

    Args:
        bounds: float64 ``[p, k]``, of all pairs; raised in place, that of the pair that was tried to infinity.
        own: float64 ``[n, m]``, costs of the selection.
        rows: float64 ``[k, m]``, costs of the rows that come in.
        leaving: int ``[p]``, of the members that go.
        member: index into ``leaving`` of the one that was tried.
        other: index into ``rows``.
        potentials: ``[n]``, after that exchange.
    """
    tried = own.copy()
    tried[leaving[member]] = rows[other]
    duals = dual_facts(tried, potentials)
    same_member = lower_bounds(rows, duals, leaving[member : member + 1], len(own))[0]
    back = np.stack([own[leaving[member]] - duals.without(index) for index in leaving])
    same_other = duals.removal[leaving] + marginal_costs(back, len(own))
    bounds[member] = np.maximum(bounds[member], same_member)
    bounds[:, other] = np.maximum(bounds[:, other], same_other)
    bounds[member, other] = np.inf
