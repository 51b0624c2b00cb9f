"""Ranks of adapters from the spectra of the pre-trained weights: SARA and Mo-SARA (arXiv 2408.03290).

A matrix gets as many ranks as its largest singular values take to make up a share of their sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_llm.arrays import Array, computes_in_torch, to_numpy

ROUNDING = 1e-6  # relative to the sum: a share that is reached up to this counts as reached


def rank_from_spectrum(singular_values: Array, threshold: float, r_min: int = 1, r_max: int | None = None) -> int:
    """The least k whose k largest singular values sum to at least ``threshold`` of all, within [r_min, r_max].

    Args:
        singular_values: [n], >= 0, in any order.
        threshold: m in [0, 1].
        r_min: least rank.
        r_max: largest rank; the number of values if not given.

    Returns:
        k. Ports count values strictly below the share, which is one too few and gives 0 for small m.

    Raises:
        ValueError: no values, negative ones, or a threshold or bounds out of range.

    Example:
        >>> [rank_from_spectrum([4, 3, 2, 1], m) for m in (0.01, 0.5, 0.7, 0.71, 1.0)]
        [1, 2, 2, 3, 4]
    """
    values = _spectrum(singular_values)
    if not 0 <= threshold <= 1:
        raise ValueError(f"the threshold must lie in [0, 1], not {threshold}")
    low, high = _bounds(len(values), r_min, r_max)
    reached = np.cumsum(values) >= threshold * values.sum() * (1 - ROUNDING)
    return int(np.clip(int(reached.argmax()) + 1, low, high))


def allocate_ranks(
    spectra: Mapping[str, Any],
    threshold: float | None = None,
    budget: int | None = None,
    r_min: int = 1,
    r_max: int | None = None,
) -> dict[str, int]:
    """Ranks of several matrices: by one threshold, or by the largest threshold whose ranks fit into a budget.

    Args:
        spectra: singular values by module.
        threshold: m in [0, 1]; or
        budget: ranks in all. Thresholds that matter are the cumulative shares of all spectra; the largest one that
            fits is taken.
        r_min: least rank of a module.
        r_max: largest rank of a module.

    Returns:
        A rank by module.

    Raises:
        ValueError: neither or both are given, or r_min everywhere is above the budget.

    Example:
        >>> allocate_ranks({"q": [4, 3, 2, 1], "v": [10, 1, 1, 1]}, budget=5)
        {'q': 3, 'v': 2}
    """
    if (threshold is None) == (budget is None):
        raise ValueError("give either a threshold or a budget of ranks")
    if threshold is not None:
        return _ranks(spectra, threshold, r_min, r_max)
    values = {name: _spectrum(one) for name, one in spectra.items()}
    shares = [np.cumsum(one) / one.sum() for one in values.values() if one.sum() > 0]
    candidates = np.unique(np.concatenate([[0.0], *shares]).clip(0.0, 1.0))
    fitting = None
    low, high = 0, len(candidates) - 1
    while low <= high:  # ranks only grow with the threshold
        middle = (low + high) // 2
        ranks = _ranks(values, float(candidates[middle]), r_min, r_max)
        if sum(ranks.values()) <= (budget or 0):
            fitting, low = ranks, middle + 1
        else:
            high = middle - 1
    if fitting is None:
        raise ValueError(f"a budget of {budget} ranks is below r_min ({r_min}) for each of {len(spectra)} matrices")
    return fitting


@computes_in_torch("x", "U", "Vt", "lam", "gates", "v")
def mo_sara_branch(
    x: Tensor,
    U: Tensor,  # noqa: N803 - the factors' names of a singular value decomposition
    Vt: Tensor,  # noqa: N803
    lam: Tensor,
    gates: Tensor,
    v: Tensor,
) -> Tensor:
    """Mo-SARA's branch: ``diag(v) U (sum_e g_e diag(lam_e)) V^T x``, with frozen singular vectors.

    The form is our reading of the paper's overview and of a port.

    Args:
        x: [b, m].
        U: [o, k], left singular vectors.
        Vt: [k, m], right ones.
        lam: [e, k], a diagonal per expert.
        gates: [b, e], weights of the experts.
        v: [o], zeros at the start: the branch is then 0.

    Returns:
        [b, o].

    Example:
        >>> mo_sara_branch([[1.0, 2.0]], [[1.0], [0]], [[0, 1.0]], [[3.0], [5.0]], [[0.5, 0.5]], [1.0, 1.0]).tolist()
        [[8.0, 0.0]]
    """
    return torch.einsum("bm,km,be,ek,ok->bo", x, Vt, gates, lam, U) * v


def _spectrum(singular_values: Array) -> NDArray[np.float64]:
    values = np.sort(to_numpy(singular_values).astype(np.float64).ravel())[::-1]
    if not len(values) or not np.isfinite(values).all() or values[-1] < 0:
        raise ValueError("singular values must be finite numbers >= 0, at least one of them")
    return values


def _bounds(n_values: int, r_min: int, r_max: int | None) -> tuple[int, int]:
    high = n_values if r_max is None else min(r_max, n_values)
    if r_min < 1 or (r_max is not None and r_max < r_min):
        raise ValueError(f"1 <= r_min <= r_max is needed, not {r_min} and {r_max}")
    return min(r_min, high), high


def _ranks(spectra: Mapping[str, Any], threshold: float, r_min: int, r_max: int | None) -> dict[str, int]:
    return {name: rank_from_spectrum(values, threshold, r_min, r_max) for name, values in spectra.items()}
