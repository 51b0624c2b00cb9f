"""Eigenvalues of a Hessian that is given by its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from recbole_llm.arrays import ArrayT
from recbole_llm.errors import InputError

TOLERANCE = 1e-4  # of either error, as a share of the eigenvalue larger in size: single precision gives no more


def extreme_eigenvalues(hvp: Callable[..., ArrayT], like: ArrayT, steps: int = 100) -> tuple[float, float]:
    """The smallest (most negative) and the largest eigenvalue of H, by Lanczos' method with full reorthogonalisation.

    It ends where neither error exceeds :data:`TOLERANCE`.

    Args:
        hvp: as for :func:`solve`.
        like: array or tensor of the shape and type that ``hvp`` takes.
        steps: most products, each of which keeps a vector.

    Example:
        >>> matrix = np.diag([1.0, 2.0, 5.0])
        >>> smallest, largest = extreme_eigenvalues(lambda vector: matrix @ vector, np.zeros(3))
        >>> round(smallest, 3), round(largest, 3)
        (1.0, 5.0)
    """
    from scipy.linalg import eigh_tridiagonal

    size = math.prod(like.shape)
    device = like.device if isinstance(like, Tensor) else "cpu"
    vector = torch.from_numpy(np.random.default_rng(0).normal(size=size)).to(device)
    vector = vector / vector.norm()
    basis: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []  # the diagonal
    for _ in range(min(steps, size)):
        basis.append(vector)
        image = torch.as_tensor(finite(hvp(shaped_like(vector, like)))).detach().double().reshape(-1)
        diagonal.append(float(vector @ image))
        for known in (*basis, *basis):  # twice is enough
            image = image - (known @ image) * known
        values, vectors = eigh_tridiagonal(diagonal, beside)
        length = float(image.norm())
        if length * np.abs(vectors[-1, [0, -1]]).max() <= TOLERANCE * np.abs(values).max():
            break
        beside.append(length)
        vector = image / length
    return float(values[0]), float(values[-1])


def finite(image: ArrayT) -> ArrayT:
    """A product with the Hessian, or the Hessian, as it is; InputError where it is no number."""
    if not torch.as_tensor(image).isfinite().all():
        raise InputError(
            "inverse_hvp: the Hessian, or its product with a vector, holds NaN or infinity; check the training of the "
            "recommender",
            kind="numeric",
        )
    return image


def shaped_like(values: Tensor, reference: ArrayT) -> ArrayT:
    """Values ``[m]`` in the shape and type of the reference."""
    values = values.reshape(tuple(reference.shape))
    return values.to(reference) if isinstance(reference, Tensor) else values.numpy().astype(reference.dtype)
