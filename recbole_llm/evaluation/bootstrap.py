"""Significance of a difference between two models over users alone, by resampling them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

_BLOCK_ELEMENTS = 2**22  # of resampled rows held at once: 32 MB


@dataclass(frozen=True)
class PairedComparison:
    """Outcome of ``paired_bootstrap`` for the difference a - b."""

    mean_difference: float
    """Mean over users of the difference."""
    low: float
    """Lower end of the percentile interval."""
    high: float
    """Upper end of the percentile interval."""
    p_value: float
    """Two-sided, of the hypothesis that the mean difference is 0."""
    n: int
    """Users."""
    n_seeds: int = 1
    """Runs averaged per user before resampling."""


def paired_bootstrap(
    a: Any, b: Any, n_resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> PairedComparison:
    """Compares two models on the same users by resampling users (Efron and Tibshirani 1993, chapters 13 and 16).

    With several seeds, each user's values are averaged over the seeds first: the interval then speaks of the users
    that might have been drawn, not of the seeds. The p-value is the share of resampled means that lie as far from the
    observed mean as it lies from 0, with the observed one counted in, so that it is never 0.

    Args:
        a: ``[users]`` or ``[seeds, users]``, a metric per user of the first model.
        b: the same users of the second model; its number of seeds may differ.
        n_resamples: bootstrap samples.
        seed: seed of the resampling.
        confidence: confidence of the interval, between 0 and 1.

    Raises:
        ValueError: the users differ in number, there are none, or a value is not finite.

    Example:
        >>> found = paired_bootstrap([1.0, 0.5, 1.0, 0.5], [0.0, 0.5, 0.0, 0.5], n_resamples=200)
        >>> found.mean_difference, 0 < found.p_value < 1
        (0.5, True)
    """
    first, second = np.atleast_2d(np.asarray(a, dtype=float)), np.atleast_2d(np.asarray(b, dtype=float))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not first.size or not second.size:
        raise ValueError(f"both models need values of the same users, got {list(first.shape)} and {list(second.shape)}")
    if n_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"n_resamples must be positive and confidence in (0, 1), got {n_resamples} and {confidence}")
    difference = checked_finite(first.mean(axis=0) - second.mean(axis=0))
    mean = float(difference.mean())
    means = _resampled_means(difference, n_resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    # The rounding of a mean must not decide whether a resample equals the observed one.
    extreme = int(np.count_nonzero(np.abs(means - mean) >= abs(mean) * (1 - 1e-12)))
    return PairedComparison(
        mean, float(low), float(high), (1 + extreme) / (1 + n_resamples), difference.size, max(len(first), len(second))
    )


def minimal_detectable_difference(differences: Any, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true mean difference that a two-sided test on so many users would find, by the normal approximation.

    ``(z_(1 - alpha/2) + z_power) s / sqrt(n)`` with the standard deviation ``s`` of the per-user differences.

    Args:
        differences: ``[users]`` or ``[seeds, users]`` (averaged over seeds first), at least two users.
        power: chance of finding it.
        alpha: level of the test.

    Example:
        >>> round(minimal_detectable_difference([1.0, -1.0] * 50), 3)
        0.282
    """
    values = checked_finite(np.atleast_2d(np.asarray(differences, dtype=float)).mean(axis=0))
    if values.size < 2:
        raise ValueError(f"a standard deviation needs at least two users, got {values.size}")
    if not (0 < power < 1 and 0 < alpha < 1):
        raise ValueError(f"power and alpha must lie in (0, 1), got {power} and {alpha}")
    quantile = NormalDist().inv_cdf
    return float((quantile(1 - alpha / 2) + quantile(power)) * values.std(ddof=1) / np.sqrt(values.size))


def _resampled_means(values: np.ndarray, n_resamples: int, generator: np.random.Generator) -> np.ndarray:
    means = np.empty(n_resamples)
    step = max(1, _BLOCK_ELEMENTS // values.size)
    for start in range(0, n_resamples, step):
        stop = min(start + step, n_resamples)
        means[start:stop] = values[generator.integers(values.size, size=(stop - start, values.size))].mean(axis=1)
    return means


def checked_finite(values: np.ndarray) -> np.ndarray:
    """The values.

    Raises:
        ValueError: one is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("a value is NaN or infinite")
    return values
