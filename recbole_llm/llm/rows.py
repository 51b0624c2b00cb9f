"""Rows of token ids: common beginnings, batches, padding."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from recbole_llm.hashing import hash_tensors

Order = Literal["as given", "shortest first", "longest first"]
PASS_TOKENS = 256  # what a pass costs besides its tokens: a few on a CPU, about a thousand on a large GPU


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


def length_batches(
    lengths: Sequence[int], budget: int, order: Order = "longest first", overhead: int = PASS_TOKENS
) -> list[list[int]]:
    """Group rows into batches by their padded size.

    Args:
        lengths: Length of each row in tokens, or another cost of at least 1.
        budget: Limit of (rows x length of the longest row) of a batch; a row that alone exceeds it is a batch of one.
        order: In which order rows are taken. As given, batches are as full as they can be. By length, a batch also ends
            where the padding of shorter rows would cost more than a further pass; the longest first let out-of-memory
            errors surface immediately.
        overhead: What a pass costs besides its tokens, in tokens.

    Returns:
        Indices of the rows of each batch; every row once.

    Example:
        >>> length_batches([3] * 500 + [90] * 3, 100_000, overhead=256) == [[500, 501, 502], [*range(500)]]
        True
    """
    taken = list(range(len(lengths)))
    if order == "as given":
        ends = _full_batches(lengths, budget)
    else:  # equal lengths stay in the given order, either way
        taken.sort(key=lambda row: -lengths[row] if order == "longest first" else lengths[row])
        sizes = sorted(lengths, reverse=True)
        ends = _cheapest_batches(sizes, budget, overhead)
        if order == "shortest first":
            ends = [len(taken) - end for end in [0, *ends][-2::-1]]
    return [taken[start:end] for start, end in pairwise([0, *ends])]


def _full_batches(lengths: Sequence[int], budget: int) -> list[int]:
    """Where batches end that take the next row whenever it fits."""
    ends, start, longest = [], 0, 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > start and longest * (row - start + 1) > budget:
            ends.append(row)
            start, longest = row, length
    return [*ends, len(lengths)] if lengths else []


def _cheapest_batches(sizes: Sequence[int], budget: int, overhead: int) -> list[int]:
    """Where batches of falling sizes end, so that padded sizes and overheads together are small.

    The least sum over all batches that are full or end where the size falls.
    """
    n = len(sizes)
    run_end = [n] * (n + 1)  # of each position: where its size falls
    for place in range(n - 2, -1, -1):
        run_end[place] = run_end[place + 1] if sizes[place] == sizes[place + 1] else place + 1
    cost, start_of = [0.0] + [math.inf] * n, [0] * (n + 1)
    for start, size in enumerate(sizes):
        if cost[start] == math.inf:
            continue
        full = min(n, start + max(1, budget // size))
        end = run_end[start]
        while True:
            end = min(end, full)
            found = cost[start] + overhead + (end - start) * size
            if found < cost[end]:
                cost[end], start_of[end] = found, start
            if end == full:
                break
            end = run_end[end]
    ends, end = [], n
    while end:
        ends.append(end)
        end = start_of[end]
    return ends[::-1]


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
