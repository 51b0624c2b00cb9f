"""Significance of a difference between two models: over users, and over seeds and users."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

Interval = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Outcome of :func:`compare_two_level` for the difference a - b.

    Attributes:
        difference: mean over users and seeds.
        users: interval of the difference between these very runs, had other users been drawn.
        seeds_and_users: interval had other seeds been drawn as well; None where a model has one seed only.
        p: two-sided, of the hypothesis that the difference is 0; it counts seeds where :attr:`seeds_and_users` does.
        p_users: the same over users alone.
        detectable: the smallest true difference that such a comparison would find four times out of five.
        n_users: users compared.
        n_seeds: seeds of a and of b.
        is_paired: whether runs of the same seed were compared with each other.
    """

    difference: float
    users: Interval
    seeds_and_users: Interval | None
    p: float
    p_users: float
    detectable: float
    n_users: int
    n_seeds: tuple[int, int]
    is_paired: bool

    @property
    def counts_seeds(self) -> bool:
        """Whether :attr:`p` speaks of other seeds too."""
        return self.seeds_and_users is not None


def compare_two_level(
    a: Any,
    b: Any,
    *,
    users: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    seeds: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    confidence: float = 0.95,
    power: float = 0.8,
) -> Comparison:
    """Compare two models on the same users, each trained with several seeds: what would other seeds and users show?

    A user's difference is ``d[s, u] = m + S[s] + U[u] + E[s, u]``: seeds and users are both drawn, and crossed. The
    variance of the mean is estimated without bias from the mean squares between seeds, between users and of the rest,
    ``(MS_S + max(0, MS_U - MS_E)) / (seeds users)``, and the mean is compared with a t distribution whose degrees of
    freedom follow Satterthwaite (1946, Biometrics Bulletin 2), ``seeds - 1`` for the first part and ``users - 1`` for
    the second. It is the test of two crossed random factors (Clark 1973, J. Verbal Learning and Verbal Behavior 12).
    Seeds may happen to agree more than users do, but make no difference surer than it is over users: of this test and
    the t test of each user's mean over the seeds, whose interval is ``users``, the more cautious one counts. Where
    seeds matter most, it is the t test of the seeds' means, exact for normal ones. A bootstrap that resamples seeds and
    users (Owen 2007, Annals of Applied Statistics 1) estimates the same variance, but five seeds resampled look
    ``4 / 5`` as variable as they are, and its quantiles know of no degrees of freedom; the percentile method of Efron
    and Tibshirani (1993, chapter 13) is for many of each.

    Where both have the same seeds, runs of one seed are compared with each other (they share their few-shot rows). If
    not, the variances of both models' seeds are added and the degrees of freedom are those of Welch (1947).

    Args:
        a: ``[seeds, users]`` or ``[users]``, a metric per user of the first model.
        b: the same of the second model.
        users: ids of the users of a and of b; they must be the same, in any order. Without ids, the users of both are
            taken to be the same in the same order.
        seeds: seeds of a and of b; without them, as many runs are taken to have the same seeds in the same order.
        confidence: confidence of the intervals, between 0 and 1.
        power: chance of finding :attr:`Comparison.detectable`, at the level ``1 - confidence``.

    Raises:
        ValueError: the users are different ones or fewer than two, ids are missing or given twice, or a value is not
            finite.

    Example:
        >>> a = [[0.6, 0.2, 0.4, 0.8], [0.7, 0.1, 0.5, 0.9], [0.5, 0.3, 0.4, 0.9]]
        >>> b = [[0.2, 0.1, 0.3, 0.5], [0.3, 0.0, 0.1, 0.6], [0.2, 0.2, 0.3, 0.4]]
        >>> found = compare_two_level(a, b)
        >>> round(found.difference, 3), found.n_seeds, found.counts_seeds
        (0.258, (3, 3), True)
    """
    first, second = _checked_gains(a, "a"), _checked_gains(b, "b")
    if not (0 < confidence < 1 and 0 < power < 1):
        raise ValueError(f"confidence and power must lie in (0, 1), got {confidence} and {power}")
    second = _same_users(first, second, users)
    # In a unit of their own, a power of two, which costs no digit: squares of squares stay within a float's range.
    exponent = int(np.frexp(max(np.abs(first).max(), np.abs(second).max()))[1])
    first, second = np.ldexp(first, -exponent), np.ldexp(second, -exponent)
    first, second, is_paired = _same_seeds(first, second, seeds)
    n_seeds, n_users = (len(first), len(second)), first.shape[1]
    means = first.mean(axis=0) - second.mean(axis=0)
    mean, between_users = float(means.mean()), float(means.var(ddof=1)) / n_users
    parts = [(between_users, float(n_users - 1))]
    interval, p_users = _t_test(mean, parts, confidence)
    both, p = None, p_users
    if min(n_seeds) > 1:
        crossed = _variances([first - second] if is_paired else [first, second], between_users)
        both, p_crossed = _t_test(mean, crossed, confidence)
        p = max(p_crossed, p_users)
        if both[1] - both[0] < interval[1] - interval[0]:
            both = interval
        else:
            parts = crossed
    variance, degrees = _satterthwaite(parts)
    quantiles = special.stdtrit(degrees, 1 - (1 - confidence) / 2) + special.stdtrit(degrees, power)
    detectable = float(quantiles) * math.sqrt(variance)
    mean, detectable = math.ldexp(mean, exponent), math.ldexp(detectable, exponent)
    interval, both = _in_unit(interval, exponent), None if both is None else _in_unit(both, exponent)
    return Comparison(mean, interval, both, p, p_users, detectable, n_users, n_seeds, is_paired)


def _in_unit(interval: Interval, exponent: int) -> Interval:
    return math.ldexp(interval[0], exponent), math.ldexp(interval[1], exponent)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, corrected so that all of them together err as seldom as one (Holm 1979).

    The least one is multiplied by their number, the next by one less, and so on; none falls below the one before.

    Args:
        p_values: p-values of the comparisons of one table.

    Returns:
        The corrected ones, in the order given.

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    values = np.asarray(p_values, dtype=float)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1], got {p_values}")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return [float(value) for value in corrected]


Parts = list[tuple[float, float]]  # what a variance is the sum of, each with its degrees of freedom


def _variances(gains: Sequence[np.ndarray], between_users: float) -> Parts:
    """The parts of the variance of a mean over seeds and users.

    Args:
        gains: the differences, or the gains of both models, ``[seeds, users]`` each.
        between_users: variance of a user's mean over the seeds, over the number of users.
    """
    n_users = gains[0].shape[1]
    seeds: Parts = []
    by_chance = 0.0  # how much users would vary if none of them preferred a model
    for own in gains:
        n_seeds, by_seed = len(own), own.mean(axis=1)
        rest = own - own.mean(axis=0) - by_seed[:, None] + own.mean()
        by_chance += float((rest**2).sum()) / ((n_seeds - 1) * (n_users - 1)) / (n_seeds * n_users)
        seeds.append((float(by_seed.var(ddof=1)) / n_seeds, float(n_seeds - 1)))
    return [*seeds, (max(0.0, between_users - by_chance), float(n_users - 1))]


def _satterthwaite(parts: Parts) -> tuple[float, float]:
    """A sum of variances and its degrees of freedom."""
    total = sum(value for value, _ in parts)
    spread = sum(value**2 / degrees for value, degrees in parts)
    return total, total**2 / spread if spread > 0 else 1.0


def _t_test(mean: float, parts: Parts, confidence: float) -> tuple[Interval, float]:
    """Interval of a mean, and the two-sided p-value of its being 0."""
    variance, degrees = _satterthwaite(parts)
    if variance <= 0:
        return (mean, mean), float(mean == 0)
    error = math.sqrt(variance)
    width = error * float(special.stdtrit(degrees, 1 - (1 - confidence) / 2))
    return (mean - width, mean + width), 2 * float(special.stdtr(degrees, -abs(mean) / error))


def _checked_gains(values: Any, name: str) -> np.ndarray:
    """Gains [seeds, users]."""
    gains: np.ndarray = np.atleast_2d(np.asarray(values, dtype=float))
    if gains.ndim != 2 or not len(gains) or gains.shape[1] < 2:
        raise ValueError(f"{name} must be [seeds, users] with two users at least, got {list(np.shape(values))}")
    if not np.isfinite(gains).all():
        raise ValueError(f"{name}: a value is NaN or infinite")
    return gains


def _same_users(first: np.ndarray, second: np.ndarray, users: Any) -> np.ndarray:
    """The second model's gains in the order of the first one's users."""
    if users is None:
        if first.shape[1] != second.shape[1]:
            raise ValueError(
                f"a has {first.shape[1]} users, b has {second.shape[1]}: give their ids as users=(ids of a, ids of b)"
            )
        return second
    indices = []
    for name, ids, gains in zip("ab", users, (first, second), strict=True):
        index = {user: place for place, user in enumerate(ids)}
        if len(ids) != gains.shape[1] or len(index) != len(ids):
            raise ValueError(f"users: {name} has {gains.shape[1]} users and {len(index)} different ids")
        indices.append(index)
    for name, own, other in zip("ab", indices, reversed(indices), strict=True):
        if only := [user for user in own if user not in other]:
            raise ValueError(f"users: {len(only)} users are only in {name}, such as {only[0]!r}; compare the same ones")
    return second[:, [indices[1][user] for user in indices[0]]]


def _same_seeds(first: np.ndarray, second: np.ndarray, seeds: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """Both models' gains, and whether each run of one stands beside the other's run of the same seed."""
    if seeds is None:
        return first, second, len(first) == len(second)
    own, other = (list(given) for given in seeds)
    for name, given, gains in (("a", own, first), ("b", other, second)):
        if len(given) != len(gains) or len(set(given)) != len(given):
            raise ValueError(f"seeds: {name} has {len(gains)} runs and the seeds {given}")
    if set(own) != set(other):
        return first, second, False
    return first, second[[other.index(seed) for seed in own]], True
