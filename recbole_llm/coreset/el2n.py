"""EL2N: rows with the largest error of the recommender (Paul et al. 2021, arXiv 2107.07075)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.arrays import Array, like, to_tensor
from recbole_llm.coreset.selector import EL2N, Selector, highest
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_ELEMENTS = 2**22


class EL2NSelector(Selector):
    """The rows with the longest error vectors; of several measurements per row their mean counts.

    Example:
        >>> EL2NSelector().select(np.arange(4), 2, el2n=[0.1, 1.3, 0.2, 0.9]).ids.tolist()
        [1, 3]
    """

    name = "el2n"
    needs = (EL2N,)

    def _select(self, n_rows: int, budget: int, seed: int, *, el2n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return highest(el2n, budget), el2n


def el2n_scores(logits: Array, targets: Array) -> Any:
    """Length of ``softmax(logits) - onehot(target)``, row by row.

    Args:
        logits: ``[n, items]``, a recommender's scores of all items; -inf marks an item that cannot be the answer.
        targets: int ``[n]``.

    Returns:
        float64 ``[n]``, in [0, sqrt(2)], of the type of ``logits``.

    Raises:
        InputError: a target is no item, or logits hold NaN.

    Example:
        >>> el2n_scores([[2.0, 2.0], [9.0, 0.0]], targets=[0, 0]).round(3).tolist()
        [0.707, 0.0]
    """
    import torch

    scores = to_tensor(logits).detach()
    answers = to_tensor(targets, scores.device).long()
    if scores.ndim != 2 or answers.shape != scores.shape[:1]:
        raise ValueError(f"logits [n, items] and targets [n] are needed, not {[*scores.shape]} and {[*answers.shape]}")
    outside = answers[(answers < 0) | (answers >= scores.shape[1])]
    if len(outside):
        raise InputError(f"EL2N: target {int(outside[0])} is no item: ids go from 0 to {scores.shape[1] - 1}")
    step = max(1, _BLOCK_ELEMENTS // scores.shape[1])
    blocks = zip(scores.split(step), answers.split(step), strict=True)
    lengths = torch.cat([_error_length(*block) for block in blocks]) if len(scores) else scores.new_zeros(0).double()
    if not lengths.isfinite().all():
        raise InputError(
            "EL2N: the recommender's scores hold NaN, or none of a row's is finite; check its training", kind="numeric"
        )
    return lengths if isinstance(logits, torch.Tensor) else like(lengths.numpy(), logits)


def _error_length(logits: Tensor, targets: Tensor) -> Tensor:
    import torch

    error = logits.double().softmax(dim=1)
    error[torch.arange(len(targets), device=targets.device), targets] -= 1  # sum p^2 - 2 p_y + 1 would cancel
    lengths: Tensor = error.norm(dim=1)
    return lengths
