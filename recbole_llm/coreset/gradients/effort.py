"""Effort: how hard a row is for the LLM, the norm of its loss's gradient (DEALRec, arXiv 2401.17197, equation 12)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.coreset.gradients.norms import GradientNorms
from recbole_llm.errors import InputError
from recbole_llm.progress import Bar

EFFORT_WEIGHTS = ("all", "last", "reference")


def effort_scores(
    model: nn.Module,
    losses: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    parameters: Iterable[str] | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Norm of each row's gradient for a data set; only norms are kept.

    Args:
        model: the LLM with its adapter.
        losses: ``losses(model, batch) -> [rows]``, see :func:`losses_per_row`.
        batches: in any sizes; padding must not affect the losses.
        parameters: see :class:`GradientNorms` and :func:`effort_weights`.
        progress: show a bar.

    Returns:
        float64 ``[n]``, in the order of the batches.

    Example:
        >>> model, batches = nn.Linear(2, 1, bias=False), [torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]])]
        >>> effort_scores(model, lambda module, batch: module(batch).squeeze(1), batches).tolist()
        [5.0, 1.0]
    """
    norms = GradientNorms(model, parameters)
    bar = Bar(batches, "effort", leave=False, disable=not progress)
    found = [norms(partial(losses, model, batch)).cpu() for batch in bar]
    return torch.cat(found).numpy() if found else np.zeros(0)


def losses_per_row(token_losses: Tensor, rows: Tensor, n_rows: int, mean: bool = True) -> Tensor:
    """Losses of rows from those of their answer tokens.

    Args:
        token_losses: ``[tokens]``.
        rows: int64 ``[tokens]``, the row of each.
        n_rows: rows of the batch.
        mean: over the row's own tokens, which padding and longer rows do not change; else the sum.

    Returns:
        ``[rows]``; 0 for a row without tokens.

    Example:
        >>> losses_per_row(torch.tensor([1.0, 3.0, 5.0]), rows=torch.tensor([0, 0, 2]), n_rows=3).tolist()
        [2.0, 0.0, 5.0]
    """
    totals = token_losses.new_zeros(n_rows).index_add(0, rows, token_losses)
    return totals / torch.bincount(rows, minlength=n_rows).clamp(min=1) if mean else totals


def effort_weights(model: nn.Module, which: str = "all") -> list[str]:
    """Names of the trainable weights to take the gradient of.

    LoRA's A is left out where its B is 0, as before any tuning: its gradient is exactly 0, being B's times what comes
    from above.

    Args:
        model: with its adapter.
        which: ``all`` of them, as the paper defines effort; those of the ``last`` layer that has any; or as in its code
            (``reference``) LoRA's B of that layer's value projection, or of all it has where that is fused with others.

    Raises:
        InputError: the model has none.

    Example:
        >>> effort_weights(nn.Linear(2, 1))
        ['weight', 'bias']
    """
    if which not in EFFORT_WEIGHTS:
        raise InputError(f"effort weights: {which!r} is not allowed; give one of {', '.join(EFFORT_WEIGHTS)}")
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    if which != "all":
        numbered = {name: int(match[1]) for name in names if (match := re.search(r"\.(\d+)\.", name))}
        names = [name for name in numbered if numbered[name] == max(numbered.values())]
    if which == "reference":
        names = [name for name in names if ".lora_B." in name]
        names = [name for name in names if ".v_proj." in name] or names
    names = _with_gradient(model, names)
    if not names:
        raise InputError(
            f"effort weights: the model has no trainable ones for '{which}'; use another adapter, or all",
            kind="conflict",
        )
    return names


def _with_gradient(model: nn.Module, names: list[str]) -> list[str]:
    """The names without those of A that stand below a B of zeros."""
    own = dict(model.named_parameters())
    above = {name: own.get(name.replace(".lora_A.", ".lora_B.")) for name in names if ".lora_A." in name}
    still = {name for name, weight in above.items() if weight is not None and not weight.any()}
    return [name for name in names if name not in still]
