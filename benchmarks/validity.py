"""What the validity benchmarks share: a rank correlation with its interval, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.reports import RESULTS, rendered

ROOT = Path(__file__).resolve().parent.parent
_RESAMPLES = 10_000


def rank_correlation(first: Sequence[float], second: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Spearman's correlation of two lists, with the 95 % interval of a bootstrap over their pairs.

    Args:
        first: ``[n]``, n >= 3.
        second: ``[n]``.
        seed: of the resampling.

    Returns:
        ``rho``, ``low``, ``high`` and ``n``; NaN where all values of a list are equal.
    """
    pairs = np.array([first, second], dtype=float)
    n = pairs.shape[1]
    drawn = np.random.default_rng(seed).integers(n, size=(_RESAMPLES, n))
    low, high = np.nanquantile(_spearman(*pairs[:, drawn]), [0.025, 0.975])
    return {"rho": float(_spearman(*pairs[:, None])[0]), "low": float(low), "high": float(high), "n": n}


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of each line of two tables ``[lines, n]``; ties share their mean rank."""
    ranks = [rankdata(values, axis=1) for values in (first, second)]
    a, b = (own - own.mean(axis=1, keepdims=True) for own in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))


def render_report(name: str, sentence: Callable[[dict[str, Any]], str]) -> Iterator[str]:
    """What a benchmark wrote into the folder of results, as Markdown; "not run" where there is no such file.

    Args:
        name: of the benchmark.
        sentence: from what was written, what stands below its correlations.
    """
    return rendered(RESULTS / f"{name}.json", lambda report: _lines(report, sentence))


def _lines(report: Mapping[str, Any], sentence: Callable[[dict[str, Any]], str]) -> Iterator[str]:
    yield "| | Spearman's ρ | 95 % interval | pairs |"
    yield "|---|---:|---:|---:|"
    for name, found in report["correlations"].items():
        yield f"| {name} | {found['rho']:+.2f} | {found['low']:+.2f} … {found['high']:+.2f} | {found['n']} |"
    yield ""
    yield sentence(report)
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in report["settings"].items()) + "."
