"""GORACS' greedy start, its exchanges and the whole selection against a plain version of the published code.

    python -m benchmarks.speed_goracs --repeats 0 [--sections greedy-0,exchange-0.1,whole-0.5] [--json out.json]

Sections are named by the weight of the gradient norms; ``small-`` ones take seconds, the others minutes, nearly all of
it in the plain version. In the sections ``exchange`` both begin at the same rows; in ``whole`` each at its own, from
the vectors on. Both may make the same number of exchanges. The greedy section includes the distances; where no further
row gains, the published code goes on with the same search, by rounding errors, and ours fills the selection up by
capacity and by potentials. How time and memory are measured is said in ``benchmarks/harness.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness import Goal, Section, Work, main
from benchmarks.plain_goracs import Plain, mixture, plain_costs, plain_greedy, plain_refine
from recbole_llm.coreset import GoracsInfo, goracs_select
from recbole_llm.coreset.goracs.costs import Costs, Distances
from recbole_llm.coreset.goracs.exchange import Refined, promising_pairs, refine
from recbole_llm.coreset.goracs.start import greedy_start, relaxed_greedy
from recbole_llm.coreset.goracs.transport import solve_transport

WEIGHTS = (0.0, 0.1, 0.5)
SIZES = {
    "": {"n_train": 8000, "n_valid": 2000, "budget": 800, "exchanges": 10, "candidates": 30},
    "small-": {"n_train": 400, "n_valid": 100, "budget": 40, "exchanges": 5, "candidates": 30},
}
PLAIN, OURS, SEARCH = "plain", "ours", "ours, until no row gains"


def own_costs(size: dict[str, int], weight: float) -> Costs:
    """The costs as the package computes them."""
    world = mixture(size["n_train"], size["n_valid"])
    distances = Distances(world.train, world.valid, dense=True)
    distances.scale_by_largest()
    return Costs(distances, weight * world.norms.astype(np.float64) / world.norms.max())


def greedy_work(size: dict[str, int], weight: float) -> Callable[[], Work]:
    """The greedy searches, from the vectors on."""

    def work() -> Work:
        world = mixture(size["n_train"], size["n_valid"])
        return {
            PLAIN: lambda: np.array(plain_greedy(plain_costs(world, weight), size["budget"])),
            SEARCH: lambda: relaxed_greedy(own_costs(size, weight), size["budget"]).members,
            OURS: lambda: greedy_start(own_costs(size, weight), size["budget"]).members,
        }

    return work


def greedy_facts(size: dict[str, int], weight: float, results: dict[str, Any]) -> dict[str, float]:
    """The objective of both starts, and how many rows gained."""
    costs = own_costs(size, weight)
    objectives = {f"objective, {name}": solve_transport(costs.rows(results[name])).value for name in (PLAIN, OURS)}
    return {"rows that gain": len(results[SEARCH]), **objectives}


def exchange_work(size: dict[str, int], weight: float) -> Callable[[], Work]:
    """Both searches for exchanges, from one start: the greedy one, filled up with the first rows."""

    def work() -> Work:
        costs = own_costs(size, weight)
        table = plain_costs(mixture(size["n_train"], size["n_valid"]), weight)
        members = relaxed_greedy(costs, size["budget"]).members
        start = np.concatenate([members, np.setdiff1d(np.arange(len(table)), members)])[: size["budget"]]
        pairs = functools.partial(promising_pairs, n_candidates=size["candidates"])
        return {
            PLAIN: lambda: plain_refine(table, start.tolist(), size["exchanges"], size["candidates"]),
            OURS: lambda: refine(costs, start, size["exchanges"], pairs),
        }

    return work


def exchange_facts(results: dict[str, Plain | Refined]) -> dict[str, float]:
    """What the exchanges gained; ours must not gain less."""
    facts = {}
    for name, result in results.items():
        facts |= {
            f"solves, {name}": result.n_solves,
            f"exchanges, {name}": len(result.trace) - 1,
            f"gain, {name}": result.trace[0] - result.trace[-1],
        }
    assert facts[f"gain, {OURS}"] >= facts[f"gain, {PLAIN}"] - 1e-6, facts
    return facts | {"gain ratio": facts[f"gain, {OURS}"] / max(facts[f"gain, {PLAIN}"], 1e-12)}


def whole_work(size: dict[str, int], weight: float) -> Callable[[], Work]:
    """Both selections from the vectors on: greedy start and exchanges."""

    def work() -> Work:
        world = mixture(size["n_train"], size["n_valid"])

        def plain() -> Plain:
            table = plain_costs(world, weight)
            start = plain_greedy(table, size["budget"])
            return plain_refine(table, start, size["exchanges"], size["candidates"])

        def ours() -> GoracsInfo:
            return goracs_select(
                *(*world, size["budget"], weight, size["exchanges"], size["candidates"]), return_info=True
            )[1]

        return {PLAIN: plain, OURS: ours}

    return work


def whole_facts(results: dict[str, Any]) -> dict[str, float]:
    """The objective of both, which must not be larger with ours, and how far it is below the start of either."""
    plain, ours = results[PLAIN], results[OURS]
    ends = {PLAIN: plain.trace[-1], OURS: ours.objective}
    starts = {PLAIN: plain.trace[0], OURS: ours.trace[0]}
    assert ends[OURS] <= ends[PLAIN] + 1e-6, ends
    gains = {f"gain over the plain start, {name}": starts[PLAIN] - end for name, end in ends.items()}
    return {
        **{f"solves, {name}": result.n_solves for name, result in results.items()},
        **{f"exchanges, {name}": len(result.trace) - 1 for name, result in results.items()},
        **{f"objective, {name}": end for name, end in ends.items()},
        **gains,
        f"gain over its own start, {OURS}": starts[OURS] - ends[OURS],
        "gain ratio": (starts[PLAIN] - ends[OURS]) / max(starts[PLAIN] - ends[PLAIN], 1e-12),
    }


SECTIONS: dict[str, Section] = {}
for prefix, size in SIZES.items():
    for weight in WEIGHTS:
        setting = {**size, "gradient weight": weight}
        SECTIONS[f"{prefix}greedy-{weight:g}"] = Section(
            "GORACS, greedy start",
            greedy_work(size, weight),
            setting,
            (Goal(PLAIN, SEARCH, 20.0), Goal(PLAIN, OURS, 20.0)),
            functools.partial(greedy_facts, size, weight),
        )
        SECTIONS[f"{prefix}exchange-{weight:g}"] = Section(
            "GORACS, exchanges",
            exchange_work(size, weight),
            setting,
            (Goal(PLAIN, OURS, 5.0),),
            exchange_facts,
        )
        SECTIONS[f"{prefix}whole-{weight:g}"] = Section(
            "GORACS, whole selection",
            whole_work(size, weight),
            setting,
            (Goal(PLAIN, OURS, 1.0),),
            whole_facts,
        )

if __name__ == "__main__":
    main(__doc__, SECTIONS)
