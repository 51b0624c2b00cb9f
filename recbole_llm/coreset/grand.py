"""GraNd: rows with the largest gradients of the recommender's loss (Paul et al. 2021, arXiv 2107.07075)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from recbole_llm.coreset.selector import GRAND, Selector, highest

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_CHUNK_ELEMENTS = 2**24  # of the gradients that exist at once: 64 MB in float32


class GraNdSelector(Selector):
    """The rows with the largest gradient norms; of several trained recommenders per row the mean counts.

    Example:
        >>> GraNdSelector().select(["a", "b", "c"], 1, grand=[[0.1, 0.3], [2.0, 2.2], [0.5, 0.1]]).ids.tolist()
        ['b']
    """

    name = "grand"
    needs = (GRAND,)

    def _select(self, n_rows: int, budget: int, seed: int, *, grand: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return highest(grand, budget), grand


def grand_scores(
    losses: Callable[[Tensor, Mapping[str, Tensor]], Tensor], params: Tensor, batch: Mapping[str, Tensor]
) -> Tensor:
    """Norm of the gradient of each row's loss, by gradients of many rows side by side.

    It takes any weights, shared ones (an item table that is both input and output) included, and memory for the whole
    gradient of each row of a chunk. A model that cannot be vectorised is run row by row, which the log says. For the
    linear maps of an LLM, :class:`GradientNorms` needs far less.

    Args:
        losses: ``losses(params, batch) -> [rows]``, as :func:`parameter_losses` makes it; without dropout.
        params: any shape.
        batch: tensors ``[rows, ...]``.

    Returns:
        float64 ``[rows]``.

    Example:
        >>> import torch
        >>> batch = {"x": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}
        >>> grand_scores(lambda weights, rows: rows["x"] @ weights, torch.zeros(2), batch).tolist()
        [5.0, 1.0]
    """
    import torch

    point = params.detach()

    def norm(row: Mapping[str, Tensor]) -> Tensor:
        single = {name: values.unsqueeze(0) for name, values in row.items()}
        gradient: Tensor = torch.func.grad(lambda weights: losses(weights, single)[0])(point)
        return gradient.double().square().sum().sqrt()

    try:
        return torch.func.vmap(norm, chunk_size=max(1, _CHUNK_ELEMENTS // params.numel()))(dict(batch))
    except RuntimeError as error:  # recurrent networks and in-place operations
        log.info(
            "GraNd: using one backward pass per row, as the model cannot be differentiated for many rows at once (%s)",
            str(error).splitlines()[0],
        )
        n_rows = len(next(iter(batch.values())))
        return torch.stack([norm({name: values[row] for name, values in batch.items()}) for row in range(n_rows)])
