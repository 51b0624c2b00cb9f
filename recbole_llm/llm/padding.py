"""Token ids of different lengths as one rectangle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_batch(
    token_ids: Sequence[Sequence[int]], padding: int, device: torch.device | str, left: bool
) -> tuple[Tensor, Tensor]:
    """Token ids of one batch with padding before or behind them, and the mask that hides it; int64 [texts, tokens]."""
    width = max(len(ids) for ids in token_ids)
    gaps = [width - len(ids) for ids in token_ids]
    pairs = list(zip(token_ids, gaps, strict=True))
    padded = [[padding] * gap + list(ids) if left else list(ids) + [padding] * gap for ids, gap in pairs]
    mask = [[0] * gap + [1] * len(ids) if left else [1] * len(ids) + [0] * gap for ids, gap in pairs]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)
