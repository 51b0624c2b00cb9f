"""Ranks of LoRA's matrices: one for all, or each by its singular values (SARA, arXiv 2408.03290)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Spectra = Mapping[str, np.ndarray]
"""Singular values by the name of the module."""
SpectraOf = Callable[[Sequence[str], Callable[[], Spectra]], Spectra]
"""Gives the spectra of modules: those that are known, or what the function computes."""


def compute_spectra(names: Sequence[str], compute: Callable[[], Spectra]) -> Spectra:
    """Spectra that are computed at every call, not cached."""
    return compute()


def target_layers(model: PreTrainedModel, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The linear maps that peft gives LoRA, by their names.

    Args:
        model: the bare LLM.
        targets: peft's `target_modules`: last parts of names.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and any(name == ending or name.endswith(f".{ending}") for ending in targets)
    }


def weight_of(layer: nn.Module) -> Tensor:
    """A linear map's weight W0 [out, in], float32, of quantised and of transposed (GPT-2's) layers as well."""
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    weight: Tensor = dequantize_module_weight(layer).detach().float()
    return weight.T if isinstance(layer, Conv1D) else weight


def spectra_of(layers: Mapping[str, nn.Module]) -> Spectra:
    """Singular values of each layer's weight, largest first, float32."""
    import torch

    return {name: torch.linalg.svdvals(weight_of(layer)).cpu().numpy() for name, layer in layers.items()}


def ranks_by_spectra(
    spectra: Spectra, rank: int, threshold: float | None, budget: int | None, r_min: int, r_max: int | None
) -> dict[str, int]:
    """SARA's rank of each matrix.

    Args:
        spectra: singular values by module.
        rank: rank of every matrix under the fixed rule; without threshold and budget, the budget is so many for each.
        threshold: share of the sum of singular values.
        budget: ranks in all.
        r_min: least rank of a module.
        r_max: largest rank of a module.

    Raises:
        InputError: the budget does not give every matrix its least rank.

    Example:
        >>> ranks_by_spectra({"q": [4, 3, 2, 1], "v": [10, 1, 1, 1]}, 2, None, None, 1, None)
        {'q': 3, 'v': 1}
    """
    from recbole_llm.adapter.spectrum import allocate_ranks

    if threshold is None and budget is None:
        budget = rank * len(spectra)
    if budget is not None and budget < r_min * len(spectra):
        raise InputError(
            "sara_budget",
            f"{budget} ranks are fewer than sara_r_min, {r_min}, for each of {len(spectra)} matrices; give at least "
            f"{r_min * len(spectra)}",
            kind="conflict",
        )
    return allocate_ranks(spectra, threshold, budget, r_min, r_max)
