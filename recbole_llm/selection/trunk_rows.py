"""Training rows of a user with a common beginning, computed in one pass (:mod:`prompt.trunk`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.data.rows import N_BEFORE
from recbole_llm.declare import Settings
from recbole_llm.model.base import LLMRecommender
from recbole_llm.prompt import Example
from recbole_llm.prompt.trunk import Trunks, segments

log = logging.getLogger(__name__)


def trunk_facts(settings: Settings) -> dict[str, Any]:
    """What decides which rows share a trunk, besides the rows: the rule and its numbers, as JSON values."""
    longest = settings["MAX_ITEM_LIST_LENGTH"]
    return {"rule": "segments", "longest": longest, "overlap": overlap_items(settings["trunk_overlap"], longest)}


def overlap_items(overlap: int | float, longest: int) -> int:
    """Items that a row of a long history sees at least.

    Args:
        overlap: ``trunk_overlap``, a count or a share of ``longest``.
        longest: items of history per row.

    Example:
        >>> overlap_items(0.5, 10), overlap_items(3, 10), overlap_items(1.0, 10), overlap_items(50, 10)
        (5, 3, 10, 10)
    """
    items = overlap if isinstance(overlap, int) else math.floor(overlap * longest + 1e-9)
    return min(max(items, 1), longest)


def cut_to_trunks(model: LLMRecommender, rows: Any, overlap: int) -> Any:
    """The rows of a data set with the histories that they see in trunks; the log says how much that is.

    Args:
        model: its prompts decide what fits.
        rows: the training rows, a RecBole data set.
        overlap: items that a row sees at least, if it has so many.

    Returns:
        A data set of the same rows in the same order. What the histories lost is their oldest items.
    """
    feat = rows.inter_feat
    lengths: np.ndarray = feat[rows.item_list_length_field].numpy()
    seen = _seen(model, rows, overlap)
    _log(lengths, seen, rows.config["MAX_ITEM_LIST_LENGTH"])
    if (seen == lengths).all():
        return rows
    cut = rows.copy(feat[torch.arange(len(feat))])
    cut.inter_feat.update(_newest(rows, torch.from_numpy(seen)))
    return cut


def trunks_of(model: LLMRecommender, rows: Interaction, histories: Sequence[Sequence[int]]) -> Trunks:
    """The trunks of rows that :func:`cut_to_trunks` has cut.

    Args:
        model: names the columns.
        rows: the rows.
        histories: item ids of each row, oldest first.
    """
    starts = rows[N_BEFORE] - rows[model.ITEM_SEQ_LEN]
    return Trunks.of(rows[model.USER_ID].numpy(), starts.numpy(), histories)


def _seen(model: LLMRecommender, rows: Any, overlap: int) -> np.ndarray:
    """Items of its history that each row sees. Returns: int64 [rows]."""
    feat, longest = rows.inter_feat, rows.config["MAX_ITEM_LIST_LENGTH"]
    users, before = feat[rows.uid_field].numpy(), feat[N_BEFORE].numpy()
    seen: np.ndarray = feat[rows.item_list_length_field].numpy().copy()
    examples, prompts = model.examples(feat), model.prompts
    readable = [prompts.has_prompt(example) and prompts.has_response(example) for example in examples]
    order = np.lexsort((before, users))
    order = order[np.array(readable, dtype=bool)[order]]
    for own in np.split(order, np.flatnonzero(np.diff(users[order])) + 1):

        def fits(index: int, items: int, own: np.ndarray = own) -> bool:
            example = _newest_items(examples[own[index]], items)
            return not prompts.has_prompt(example) or prompts.fits(example)

        for row, start in zip(own, segments(before[own].tolist(), longest, overlap, fits), strict=True):
            items = min(int(before[row]) - start, int(seen[row]))
            if prompts.has_prompt(_newest_items(examples[row], items)):  # else only older items have titles
                seen[row] = items
    return seen


def _newest_items(example: Example, items: int) -> Example:
    return replace(example, history=example.history[-items:])


def _newest(rows: Any, seen: torch.Tensor) -> Interaction:
    """The columns of histories without their oldest items.

    Args:
        rows: a data set.
        seen: int64 [rows], items that stay.
    """
    feat, length = rows.inter_feat, rows.item_list_length_field
    gone = (feat[length] - seen)[:, None]
    found = {length: seen}
    for name in feat.columns:
        values = feat[name]
        if name.endswith(rows.config["LIST_SUFFIX"]):
            indices = torch.arange(values.shape[1])[None]
            moved = values.gather(1, (indices + gone).clamp(max=values.shape[1] - 1))
            found[name] = torch.where(indices < seen[:, None], moved, torch.zeros_like(moved))
    return Interaction(found)


def _log(lengths: np.ndarray, seen: np.ndarray, longest: int) -> None:
    """How many targets see how much."""
    cut = seen < lengths
    line = f"train_unit user: {len(seen):,} targets, {len(seen) - cut.sum():,} of them with the history of rows apart"
    if cut.any():
        own = seen[cut]
        line += f"; {cut.sum():,} see {own.min()} to {own.max()} items, {own.mean():.1f} on average, instead of "
        line += f"{lengths[cut].mean():.1f}"
    parts = np.array_split(np.arange(1, longest + 1), min(longest, 10))
    counts = [(part[0], part[-1], int(((seen >= part[0]) & (seen <= part[-1])).sum())) for part in parts]
    spans = [f"{low}: {n:,}" if low == high else f"{low}-{high}: {n:,}" for low, high, n in counts if n]
    log.info("%s. Targets by items seen: %s.", line, ", ".join(spans))
