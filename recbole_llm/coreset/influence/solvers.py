"""Inverse-Hessian-vector products: conjugate gradients, the LiSSA recursion, and a dense solve."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_llm.arrays import Array, ArrayT, plain, to_float
from recbole_llm.coreset.checks import checked_count, checked_number
from recbole_llm.coreset.influence.eigenvalues import extreme_eigenvalues, finite, shaped_like
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)

METHODS = ("cg", "lissa", "exact")
_GROWTH = 1e3  # times the norm that a recursion which converges cannot exceed
_SOLVED = 1e-6  # relative residual of a dense solve in float64
_CONVERGED = 1e-2  # relative residual of LiSSA above which it warns


@dataclass(frozen=True)
class Solution:
    """An inverse-Hessian-vector product and how it was found.

    Attributes:
        vector: the solution, of the shape and type of the right-hand side.
        steps: Hessian-vector products used.
        residual: relative residual ||(H + damping I) h - v|| / ||v||; None after LiSSA with sampled H_t.
    """

    vector: Any
    steps: int
    residual: float | None


def inverse_hvp(
    hvp: Callable[..., Any] | None,
    vector: Array,
    method: str = "cg",
    damping: float = 0.0,
    matrix: Array | None = None,
    scale: float = 1.0,
    rescale: bool = True,
    **solver: Any,
) -> Any:
    """Solves ``(H + damping I) h = vector``; see :func:`solve`, which also tells how.

    Returns:
        h, of the shape and type of ``vector``.

    Example:
        >>> hessian = np.array([[3.0, 1.0], [1.0, 2.0]])
        >>> inverse_hvp(lambda v: hessian @ v, np.array([5.0, 5.0]), damping=1.0).round(6)
        array([0.909091, 1.363636])
        >>> inverse_hvp(None, np.array([5.0, 5.0]), "exact", damping=1.0, matrix=hessian).round(6)
        array([0.909091, 1.363636])
    """
    return solve(hvp, vector, method, damping, matrix, scale, rescale, **solver).vector


def solve(
    hvp: Callable[..., Any] | None,
    vector: Array,
    method: str = "cg",
    damping: float = 0.0,
    matrix: Array | None = None,
    scale: float = 1.0,
    rescale: bool = True,
    **solver: Any,
) -> Solution:
    """Solves ``(H + damping I) h = vector`` for a symmetric H.

    ``cg`` are conjugate gradients, for a positive definite H + damping I. ``exact`` is a dense solve, for any that is
    invertible. ``lissa`` is the recursion of DEALRec's code (arXiv 2401.17197, Algorithm 1; LiSSA, arXiv 1602.03943),

        h_0 = v,    h_t = v + (1 - damping / scale) h_{t-1} - H_t h_{t-1} / scale,

    which tends to ``scale (H + damping I)^-1 v`` if all eigenvalues of H lie between -damping and 2 scale - damping.
    That code's ``damp`` is ``damping / scale``. Where no H_t is sampled, one more product tells how far it has come.

    Args:
        hvp: ``hvp(v)`` or ``hvp(v, step=None)``, gives H v in the shape of v. LiSSA passes the number of its step, from
            0 on, for which a sample H_t may stand in for H, to the second form; None asks for H itself. None if
            ``matrix`` is given.
        vector: v, array or tensor of any shape.
        method: ``cg``, ``lissa`` or ``exact``.
        damping: >= 0, in the units of H.
        matrix: H, ``[m, m]`` with m the number of v's elements, for ``exact``; where it is None, it is made of m
            products, and where ``hvp`` is None, it serves the other methods too.
        scale: scale of LiSSA, > 0.
        rescale: whether LiSSA's result is divided by ``scale``, without which it is no solution of the system.
        **solver: ``steps`` and ``tolerance`` (relative residual) of ``cg``; ``steps``, ``repeats`` (independent runs,
            of which the mean counts) and ``average`` (the mean of the last half of the steps, for sampled H_t) of
            ``lissa``.

    Raises:
        InputError: a setting is out of range, v or a product is not finite, H + damping I is singular or, for ``cg``,
            not positive definite, or the recursion diverges.

    Example:
        >>> found = solve(lambda vector: 2.0 * vector, np.array([4.0, 6.0]))
        >>> found.vector.tolist(), found.steps
        ([2.0, 3.0], 1)
    """
    if method not in METHODS:
        raise InputError(
            f"inverse_hvp: there is no method {method!r}; choose one of {', '.join(METHODS)}", kind="unknown"
        )
    damping = checked_number("inverse_hvp damping", damping)
    scale = checked_number("inverse_hvp scale", scale, positive=True)
    if hvp is None and matrix is None:
        raise ValueError("give hvp, or the matrix")
    right = _numbers(vector)
    known: Any = None if matrix is None else _numbers(matrix)
    largest = float(abs(right).max()) if math.prod(right.shape) else 0.0
    if not math.isfinite(largest):
        raise InputError(
            "inverse_hvp: the vector holds NaN or infinity; check the training of the recommender", kind="numeric"
        )
    if largest == 0:
        log.warning("The gradient is zero: the recommender is at a stationary point, so every influence is 0")
        return Solution(right * 0, 0, 0.0)
    product = hvp or partial(_matrix_product, known)
    # The system is linear: brought to about 1, no square leaves the range of v's type. A power of two rounds nothing.
    size = math.ldexp(1.0, math.frexp(largest)[1] - 1)
    right = right / size
    if method == "exact":
        found = _exact(product, right, damping, known, **solver)
    elif method == "lissa":
        found = _lissa(product, right, damping, scale, rescale, **solver)
    else:
        found = _conjugate_gradients(product, right, damping, **solver)
    return replace(found, vector=found.vector * size)


def _conjugate_gradients(
    hvp: Callable[..., Any], vector: ArrayT, damping: float, steps: int = 1000, tolerance: float | None = None
) -> Solution:
    """Hestenes and Stiefel 1952. The default tolerance is the 3/4 power of the number type's precision."""
    steps = checked_count("inverse_hvp steps", steps)
    goal = _norm(vector) * (_precision(vector) ** 0.75 if tolerance is None else tolerance)
    estimate, residual, direction = vector * 0, vector, vector
    square = _dot(residual, residual)
    done = 0
    while done < steps and math.sqrt(square) > goal:
        image = finite(hvp(direction)) + damping * direction
        curvature = _dot(direction, image)
        if not curvature > 0:
            raise InputError(
                f"inverse_hvp: the Hessian plus damping {damping:g} is not positive definite (curvature "
                f"{curvature:.3g} in step {done + 1}); raise the damping, or use method exact",
                kind="numeric",
            )
        length = square / curvature
        estimate = estimate + length * direction
        residual = residual - length * image
        before, square = square, _dot(residual, residual)
        direction = residual + (square / before) * direction
        done += 1
    left = math.sqrt(square) / _norm(vector)
    if math.sqrt(square) > goal:
        log.warning("Conjugate gradients stopped after %d steps at a relative residual of %.1e", done, left)
    return Solution(estimate, done, left)


def _lissa(
    hvp: Callable[..., Any],
    vector: ArrayT,
    damping: float,
    scale: float,
    rescale: bool,
    steps: int = 5000,
    repeats: int = 1,
    average: bool = False,
) -> Solution:
    """The mean over ``repeats`` of the recursion; sampled steps are numbered on from one run to the next."""
    steps = checked_count("inverse_hvp steps", steps)
    repeats = checked_count("inverse_hvp repeats", repeats, low=1)
    sampled = _takes_step(hvp)
    total = vector * 0
    for repeat in range(repeats):
        estimate, collected = vector, vector * 0
        for step in range(steps):
            image = finite(hvp(estimate, step=repeat * steps + step) if sampled else hvp(estimate))
            estimate = vector + (1 - damping / scale) * estimate - image / scale
            if not _norm(estimate) <= _GROWTH * (step + 2) * _norm(vector):
                raise InputError(_why_it_diverges(hvp, vector, damping, scale, step + 1), kind="numeric")
            if average and step >= steps // 2:
                collected = collected + estimate
        total = total + (collected / (steps - steps // 2) if average and steps else estimate)
    solution = total / (repeats * scale)
    residual = None if sampled else _norm(finite(hvp(solution)) + damping * solution - vector) / _norm(vector)
    if residual is not None and residual > 1 + _SOLVED:  # it begins below 1, and falls where the recursion converges
        raise InputError(_why_it_diverges(hvp, vector, damping, scale, steps), kind="numeric")
    if residual is not None and residual > _CONVERGED:
        log.warning("LiSSA stopped after %d steps at a relative residual of %.1e: give it more steps", steps, residual)
    return Solution(solution if rescale else solution * scale, repeats * steps, residual)


def _why_it_diverges(hvp: Callable[..., Any], like: ArrayT, damping: float, scale: float, step: int) -> str:
    """Names the eigenvalue that is the cause."""
    smallest, largest = extreme_eigenvalues(hvp, like)
    problem = f"inverse_hvp: the recursion diverges in step {step}; the eigenvalue of the Hessian behind it is about "
    if smallest <= -damping:
        return f"{problem}{smallest:.3g}: raise the damping above {-smallest:.3g}"
    needed = (largest + damping) / 2
    if needed <= scale:  # H itself would do, but samples of it are larger
        needed = 2 * scale
    return f"{problem}{largest:.3g}: raise the scale above {needed:.3g}"


def _numbers(values: Array) -> Any:
    """An array, or a tensor, of real numbers: whole ones would round what is computed in their type."""
    if isinstance(values, Tensor):
        return values if values.is_floating_point() else values.double()
    return plain(to_float(values))


def _exact(hvp: Callable[..., Any], vector: ArrayT, damping: float, matrix: Array | None) -> Solution:
    """LU in float64, on the device of the vector."""
    right = torch.as_tensor(vector).detach().double().reshape(-1)
    identity: Tensor = torch.eye(len(right)).to(right)
    steps = 0
    if matrix is None:
        steps = len(right)
        log.info("Building the Hessian of %d weights from as many Hessian-vector products", steps)
        products = [torch.as_tensor(hvp(shaped_like(unit, vector))) for unit in identity]
        matrix = torch.stack([product.double().reshape(-1) for product in products])
    system: Tensor = finite(torch.as_tensor(matrix).detach().to(right))
    if system.shape != identity.shape:
        raise ValueError(f"the matrix must be {[*identity.shape]}, got {[*system.shape]}")
    system = system + damping * identity
    try:
        solution = torch.linalg.solve(system, right)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch does not say that it exports it
        solution = torch.full_like(right, torch.nan)
    residual = float((system @ solution - right).norm() / right.norm())
    if not residual < _SOLVED:
        raise InputError(
            f"inverse_hvp: the Hessian plus damping {damping:g} is singular; raise the damping", kind="numeric"
        )
    return Solution(shaped_like(solution, vector), steps, residual)


def _matrix_product(matrix: ArrayT, vector: ArrayT) -> ArrayT:
    product: ArrayT = (matrix @ vector.reshape(-1)).reshape(vector.shape)
    return product


def _takes_step(hvp: Callable[..., Any]) -> bool:
    try:
        return "step" in inspect.signature(hvp).parameters
    except ValueError:  # a builtin that does not tell
        return False


def _precision(values: ArrayT) -> float:
    return float((torch.finfo if isinstance(values, Tensor) else np.finfo)(values.dtype).eps)


def _dot(first: ArrayT, second: ArrayT) -> float:
    return float(torch.as_tensor(first).double().reshape(-1) @ torch.as_tensor(second).double().reshape(-1))


def _norm(values: ArrayT) -> float:
    return math.sqrt(square) if (square := _dot(values, values)) >= 0 else math.nan
