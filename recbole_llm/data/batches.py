"""Batches by token budget: rows become optimiser steps, steps become padded micro-batches.

A step decides the result, a micro-batch only the memory: the loss is the mean over all response tokens of the step, so
its gradient does not depend on how the step's rows are cut into micro-batches or ordered inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_llm.errors import InputError

IGNORED = -100  # the label that PyTorch's and Hugging Face's cross entropy leave out

Example = tuple[Sequence[int], Sequence[int]]  # prompt and response token ids


@dataclass(frozen=True)
class TokenBatch:
    """Left-padded rows of prompt and response tokens.

    Attributes:
        input_ids: int64 [rows, tokens].
        attention_mask: int64 [rows, tokens], 0 on padding.
        labels: int64 [rows, tokens], the token id on response tokens (EOS included), -100 elsewhere; not shifted.
        position_ids: int64 [rows, tokens], counted from the first real token, 0 on padding.
        n_answer_tokens: Number of labels that count, the weight of this micro-batch in its step.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    position_ids: Tensor
    n_answer_tokens: int

    def to(self, device: str | torch.device) -> TokenBatch:
        """The same batch on another device."""
        tensors = (self.input_ids, self.attention_mask, self.labels, self.position_ids)
        return TokenBatch(*(tensor.to(device, non_blocking=True) for tensor in tensors), self.n_answer_tokens)


def collate(examples: Sequence[Example], pad_token_id: int, pad_to_multiple: int = 1) -> TokenBatch:
    """Pad examples on the left to one length.

    Args:
        examples: Prompt and response token ids per row, EOS already at the end of the response.
        pad_token_id: Any token id: padding is told apart by the mask, never by this value.
        pad_to_multiple: The padded length is a multiple of this.
    """
    width = _round_up(max(len(prompt) + len(response) for prompt, response in examples), pad_to_multiple)
    input_ids = torch.full((len(examples), width), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for row, (prompt, response) in enumerate(examples):
        start, answer = width - len(prompt) - len(response), width - len(response)
        input_ids[row, start:] = torch.tensor([*prompt, *response])
        attention_mask[row, start:] = 1
        labels[row, answer:] = torch.tensor([*response])
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    return TokenBatch(input_ids, attention_mask, labels, position_ids, sum(len(response) for _, response in examples))


def micro_batches(
    lengths: Sequence[int], max_tokens: int, *, pad_to_multiple: int = 1, sort: bool = False
) -> list[list[int]]:
    """Cut the rows of one optimiser step into micro-batches of at most `max_tokens` tokens, padding included.

    Args:
        lengths: Tokens per row, prompt and response.
        max_tokens: The budget; a row that alone exceeds it gets a micro-batch of its own.
        pad_to_multiple: As given to `collate`.
        sort: Take the rows by length, which wastes less padding. The step's gradient stays the same: it is a mean over
            the tokens of the whole step, whatever their order.

    Returns:
        Row positions per micro-batch; every row once, in the given order unless sorted.

    Raises:
        InputError: The budget is not positive.
    """
    if max_tokens < 1:
        raise InputError(f"micro_batch_tokens: {max_tokens} is not a positive number of tokens")
    order = np.argsort(lengths, kind="stable").tolist() if sort else range(len(lengths))
    batches: list[list[int]] = []
    longest = 0
    for row in order:
        longest = max(longest, _round_up(lengths[row], pad_to_multiple))
        if batches and longest * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            longest = _round_up(lengths[row], pad_to_multiple)
    return batches


def epoch_steps(
    n_rows: int,
    batch_size: int,
    generator: np.random.Generator,
    *,
    lengths: Sequence[int] | None = None,
    length_window: int = 0,
) -> list[np.ndarray]:
    """Shuffle the rows of one epoch into optimiser steps.

    Args:
        n_rows: Rows to train on.
        batch_size: Rows per optimiser step; the last step of the epoch may hold fewer.
        generator: Draws the order; its state moves on, so the next epoch differs.
        lengths: Tokens per row, needed with `length_window`.
        length_window: Rows of similar length share a step: within every this many steps of the shuffled order rows are
            sorted by length, and the steps are shuffled again. This changes which rows meet in a step, hence the
            result; 0 turns it off.

    Returns:
        ceil(n_rows / batch_size) arrays of row indices, int64; every row once.

    Raises:
        InputError: The batch size is not positive.
    """
    if batch_size < 1:
        raise InputError(f"train_batch_size: {batch_size} is not a positive number of rows")
    order = generator.permutation(n_rows)
    if length_window > 0:
        row_lengths, window = np.asarray(lengths), length_window * batch_size
        for start in range(0, n_rows, window):
            rows = order[start : start + window]
            order[start : start + window] = rows[np.argsort(row_lengths[rows], kind="stable")]
    steps = [order[start : start + batch_size] for start in range(0, n_rows, batch_size)]
    if length_window > 0:
        for start in range(0, len(steps), length_window):
            block = steps[start : start + length_window]
            steps[start : start + length_window] = [block[place] for place in generator.permutation(len(block))]
    return steps


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
