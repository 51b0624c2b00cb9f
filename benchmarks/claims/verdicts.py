"""The verdict on a claim: what two-level statistics of a difference say of its sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_llm.evaluation import Comparison, compare_two_level, holm

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
LEVEL = 0.05


@dataclass(frozen=True)
class Tried:
    """What a trial of a claim found.

    Attributes:
        means: of the better and of the worse arm, as measured.
        comparison: of the gains, so that a positive difference is on the claimed side; None where it was not run.
        margin: see :class:`benchmarks.claims.declare.Measure`.
        counts_users: whether users were drawn as well as seeds.
        seeds: of both arms.
    """

    means: tuple[float, float] | None = None
    comparison: Comparison | None = None
    margin: float = 0.0
    counts_users: bool = True
    seeds: Sequence[int] = ()


@dataclass(frozen=True)
class Verdict:
    """A verdict and the corrected p-value that it goes by."""

    word: str
    p: float


def compared(
    better: Mapping[int, Any], worse: Mapping[int, Any], *, bigger: bool, margin: float, per_user: bool
) -> Tried:
    """The trial of one claim on the seeds that both arms were run with.

    Args:
        better: seed to the values of the arm that the claim says is better: one per user, or a single number.
        worse: the same of the other arm; the users of a seed stand in the same order.
        bigger: whether larger values are better.
        margin: equivalence margin.
        per_user: whether there is a value per user. If not, seeds are the units of a t test.

    Returns:
        Nothing but the margin where no seed, or a single number of one seed, is shared.
    """
    seeds = sorted(better.keys() & worse.keys())
    if not seeds or (not per_user and len(seeds) == 1):
        return Tried(margin=margin)
    own, other = ([one[seed] for seed in seeds] for one in (better, worse))
    sign = 1.0 if bigger else -1.0
    first, second = ([_times(sign, values) for values in one] for one in (own, other))
    means = (_mean(own), _mean(other))
    return Tried(means, compare_two_level(first, second), margin, per_user, seeds)


def _times(sign: float, values: Any) -> Any:
    return [sign * value for value in values] if isinstance(values, Sequence) else sign * values


def _mean(values: Sequence[Any]) -> float:
    numbers = [one for value in values for one in (value if isinstance(value, Sequence) else [value])]
    return float(sum(numbers) / len(numbers))


def verdicts(trials: Sequence[Tried]) -> list[Verdict | None]:
    """Verdicts on all trials of a table; None where a trial was not run.

    Where the 95 % interval over seeds and users lies within the margin, a claim *fails*: a difference that small is
    none, even where it is significant. Else, with Holm's correction over the table (level 5 %), it *holds* where
    the difference lies on the claimed side, and *fails* where it lies on the other one. All else is *undecided*, and so
    is what only one seed speaks of.
    """
    counted = [(index, trial.comparison) for index, trial in enumerate(trials) if trial.comparison is not None]
    corrected = holm([comparison.p for _, comparison in counted])
    found: list[Verdict | None] = [None] * len(trials)
    for (index, comparison), p in zip(counted, corrected, strict=True):
        found[index] = Verdict(_word(comparison, p, trials[index]), p)
    return found


def _word(comparison: Comparison, p: float, trial: Tried) -> str:
    if len(trial.seeds) < 2:
        return UNDECIDED
    low, high = interval_of(trial)
    if -trial.margin < low and high < trial.margin:
        return FAILS
    if p < LEVEL:
        return HOLDS if comparison.difference > 0 else FAILS
    return UNDECIDED


def interval_of(trial: Tried) -> tuple[float, float]:
    """The interval that a verdict goes by: over seeds and users where there are both, else over what there is."""
    assert trial.comparison is not None
    return trial.comparison.seeds_and_users or trial.comparison.users
