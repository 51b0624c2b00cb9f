"""Rows of token ids: common beginnings, batches, padding."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from recbole_llm.hashing import hash_tensors

Order = Literal["as given", "shortest first", "longest first"]


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """Refuse an empty prompt.

    Raises:
        ValueError: there is one.
    """
    if empty := [index for index, prompt in enumerate(prompts) if len(prompt) == 0]:
        raise ValueError(f"prompt {empty[0]} is empty: a decoder needs at least one token to continue")


def prompt_facts(prompts: Sequence[Sequence[int]], row_inputs: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """What a model reads of the prompts of a call, token ids and further inputs [prompts, ...], as plain data."""
    return {"prompts": [list(prompt) for prompt in prompts], "row_inputs": hash_tensors(row_inputs or {})}


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """Token ids that all rows begin with; empty for no rows."""
    return list(os.path.commonprefix([list(row) for row in rows]))


def shared_size(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, of which each keeps one at least for itself; 0 for a single prompt."""
    return min(len(common_prefix(prompts)), min(map(len, prompts)) - 1) if len(prompts) > 1 else 0


def row_sizes(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """Tokens of each prompt with all its answers."""
    return [len(prompt) + sum(map(len, own)) for prompt, own in zip(prompts, answers, strict=True)]


def length_batches(lengths: Sequence[int], budget: int, order: Order = "longest first") -> list[list[int]]:
    """Group rows into batches by their padded size.

    Args:
        lengths: Length of each row in tokens, or another cost of at least 1.
        budget: Limit of (rows x length of the longest row) of a batch; a row that alone exceeds it is a batch of one.
        order: In which order rows are taken. Rows of similar length together waste little padding; the longest first
            let out-of-memory errors surface immediately.

    Returns:
        Indices of the rows of each batch; every row once.
    """
    taken = list(range(len(lengths)))
    if order != "as given":  # equal lengths stay in the given order, either way
        sign = 1 if order == "shortest first" else -1
        taken.sort(key=lambda row: sign * lengths[row])
    batches: list[list[int]] = []
    longest = 0
    for row in taken:
        longest = max(longest, lengths[row])
        if batches and longest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = lengths[row]
    return batches


def pad_batch(
    token_ids: Sequence[Sequence[int]], padding: int, device: torch.device | str, left: bool
) -> tuple[Tensor, Tensor]:
    """Fill up the rows of one batch to the longest.

    Args:
        token_ids: Rows of token ids, at least one.
        padding: Id to fill up with.
        device: Where the result goes.
        left: Whether padding stands before the tokens; otherwise behind them.

    Returns:
        Token ids and the mask that hides padding (1 for a token, 0 for padding), both int64 [rows, tokens].
    """
    width = max(len(ids) for ids in token_ids)
    gaps = [width - len(ids) for ids in token_ids]
    pairs = list(zip(token_ids, gaps, strict=True))
    padded = [[padding] * gap + list(ids) if left else list(ids) + [padding] * gap for ids, gap in pairs]
    mask = [[0] * gap + [1] * len(ids) if left else [1] * len(ids) + [0] * gap for ids, gap in pairs]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)
