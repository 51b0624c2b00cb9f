"""Batches by token budget: rows become optimiser steps, steps become micro-batches.

A step decides the result, a micro-batch only the memory: the loss is the mean over all response tokens of the step, so
its gradient does not depend on how the step's rows are cut into micro-batches or ordered inside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recbole_llm.errors import InputError
from recbole_llm.llm.rows import length_batches


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut the rows of one optimiser step into micro-batches of at most `max_tokens` tokens, padding included.

    Rows are taken by length, which wastes less padding. The step's gradient stays the same: it is a mean over the
    tokens of the whole step, whatever their order.

    Args:
        lengths: Tokens per row, prompt and response.
        max_tokens: The budget; a row that alone exceeds it gets a micro-batch of its own.

    Returns:
        Row positions per micro-batch; every row once, the shortest first.

    Raises:
        InputError: The budget is not positive.
    """
    if max_tokens < 1:
        raise InputError(f"micro_batch_tokens: {max_tokens} is not a positive number of tokens")
    return length_batches(lengths, max_tokens, "shortest first")


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
    checked_batch_size(batch_size)
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
            steps[start : start + length_window] = [block[index] for index in generator.permutation(len(block))]
    return steps


def checked_batch_size(batch_size: int) -> int:
    """Refuse a batch size that is no number of rows.

    Raises:
        InputError: It is not positive.
    """
    if batch_size < 1:
        raise InputError(f"train_batch_size: {batch_size} is not a positive number of rows")
    return batch_size
