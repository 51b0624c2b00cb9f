"""Influence of every training row on a mean loss, by one inverse-Hessian-vector product and one directional derivative.

Removing row s from the n rows that a model was trained on changes the mean loss by about

    I(s) = 1/n  v' (H + damping I)^-1 grad L(s)

with v the gradient and H the Hessian of mean losses (Koh and Liang 2017, arXiv 1703.04730; DEALRec, arXiv 2401.17197,
equations 5 to 11). H is symmetric, so h = (H + damping I)^-1 v serves all rows, and what is left is the derivative of
all L(s) in the direction h: one forward pass with tangents, no backward pass per row. A positive value means that the
loss would rise: the row is useful.

The published code takes v, H and the rows' gradients from three different losses (negatives drawn again, batch means
against user means). Here one function, ``losses``, gives all three.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recbole_llm.coreset.checks import checked_number
from recbole_llm.coreset.influence.eigenvalues import extreme_eigenvalues
from recbole_llm.coreset.influence.mean_loss import MeanLoss
from recbole_llm.coreset.influence.solvers import solve
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)

_EIGENVALUE_ERROR = 1e-3  # relative; a negative eigenvalue that is smaller may be rounding
_ROUNDING = 0.75  # power of the number type's precision: a mean gradient is zero if it is that much below the rows'
_DECAYS, _MOST_STEPS = 20, 5000  # of LiSSA: e^-20 of the start is left, or what the paper takes


@dataclass(frozen=True)
class Influence:
    """Influence of all rows, and what it was computed with.

    Attributes:
        scores: float64 ``[n]``, the estimated rise of the mean loss if the row were removed from training.
        smallest_eigenvalue: smallest eigenvalue of the mean training loss's Hessian; negative where that is not convex.
        largest_eigenvalue: largest eigenvalue of that Hessian.
        damping: added to the Hessian's diagonal, in its units.
        gradient_norm: gradient norm of the mean loss that is considered; practically 0 where the model minimises it.
        steps: Hessian-vector products of the solver.
        residual: relative residual of the solution, None for LiSSA with sampled rows.
    """

    scores: Tensor
    smallest_eigenvalue: float
    largest_eigenvalue: float
    damping: float
    gradient_norm: float
    steps: int
    residual: float | None

    def facts(self) -> dict[str, float | int | None]:
        """Everything but the scores, as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "scores"}


def row_influence(
    train: MeanLoss,
    target: MeanLoss | None = None,
    method: str = "cg",
    damping_ratio: float = 0.1,
    damping: float | None = None,
    scale: float | None = None,
    **solver: Any,
) -> Influence:
    """Influence of every training row.

    Args:
        train: the rows that the model was trained on.
        target: the rows whose mean loss matters, those of validation for instance; by default the training rows, as in
            DEALRec. A model at the minimum of that loss has no gradient left there but rounding; then all influence is
            0, with a warning.
        method: see :func:`solve`.
        damping_ratio: damping as a share of the Hessian's largest eigenvalue, >= 0. Where that leaves an eigenvalue
            below 0, the smallest one is brought up to that share instead, with a warning.
        damping: the damping itself, in the Hessian's units, instead of the share.
        scale: scale of LiSSA, by default the largest eigenvalue plus the damping, which is enough where no rows are
            sampled.
        **solver: see :func:`solve`. LiSSA takes so many steps that e^-20 of its start is left, at most 5,000.

    Raises:
        InputError: see :func:`solve`; no eigenvalue is positive, of which ``damping_ratio`` could be a share; or the
            damping leaves one below 0, where LiSSA diverges however slowly.

    Example:
        >>> rows, targets = torch.tensor([[1.0], [1.0]]), torch.tensor([0.0, 4.0])
        >>> batches = [(rows, targets)]
        >>> losses = lambda weight, batch: (batch[0] @ weight - batch[1]) ** 2 / 2
        >>> train = MeanLoss(losses, torch.tensor([3.0]), batches)
        >>> row_influence(train, damping_ratio=0.0).scores.round(decimals=4).tolist()  # the second row does harm
        [1.5, -0.5]
    """
    looked_at = target or train
    gradient = looked_at.gradient()
    length = float(gradient.double().norm())
    if length <= torch.finfo(gradient.dtype).eps ** _ROUNDING * looked_at.gradient_size():
        gradient = gradient * 0  # solve says so
    smallest, largest = extreme_eigenvalues(train.hvp, train.params)
    if damping is None:
        damping = _relative_damping(checked_number("damping_ratio", damping_ratio), smallest, largest)
    matrix = train.hessian() if method == "exact" else None
    scale = max(abs(smallest), abs(largest)) + damping if scale is None else scale
    if method == "lissa":
        solver.setdefault("steps", _enough_steps(scale, damping, smallest))
    product = train.hvp if train.sample else lambda vector: train.hvp(vector)
    found = solve(product, gradient, method, damping, matrix, scale, **solver)
    scores = train.scores(found.vector)
    result = Influence(scores / len(scores), smallest, largest, damping, length, found.steps, found.residual)
    log.info("Influence by %s: %s", method, ", ".join(f"{name} {value}" for name, value in result.facts().items()))
    return result


def _enough_steps(scale: float, damping: float, smallest: float) -> int:
    """Steps of LiSSA; how far above 0 the smallest eigenvalue lies is not known well enough to count on."""
    if smallest + damping <= 0:
        raise InputError(
            f"influence: LiSSA diverges where the damping of {damping:g} leaves an eigenvalue of the Hessian below 0 "
            f"(the smallest is {smallest:.3g}): raise the damping above {-smallest:.3g}, or use method exact",
            kind="numeric",
        )
    slowest = damping + min(smallest, 0.0)
    return min(math.ceil(_DECAYS * scale / slowest), _MOST_STEPS) if slowest else _MOST_STEPS


def _relative_damping(ratio: float, smallest: float, largest: float) -> float:
    if largest <= 0:
        raise InputError(
            f"influence: no eigenvalue of the Hessian is above 0 ({largest:.3g}); give a damping", kind="numeric"
        )
    damping = ratio * largest
    if smallest < -_EIGENVALUE_ERROR * largest and smallest + damping <= 0:
        damping -= smallest
        log.warning(
            "The loss is not convex at these weights (eigenvalues %.3g to %.3g): using damping %.3g instead of %.3g",
            smallest,
            largest,
            damping,
            ratio * largest,
        )
    return damping
