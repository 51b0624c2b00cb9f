"""Some test rows in words: what a user had, what the model answers, what it ranks first, and what came next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.evaluation import Evaluation
from recbole_llm.model.base import LLMRecommender

ANSWERS = "answers.md"
N_ROWS = 10
N_NEWEST, N_FIRST = 5, 5  # items shown of a history and of a ranking
CUTOFF = 10
NOTHING = "(none)"


def write_answers(folder: Path, model: LLMRecommender, rows: Interaction, evaluation: Evaluation) -> Path | None:
    """Write ``answers.md``: ten test rows, spread evenly over all, with history, answer, ranking and target.

    The answer is what the model writes when nothing keeps it to titles; the ranking is that of its grounding.

    Args:
        folder: of the run.
        model: with the weights that were evaluated.
        rows: the test rows.
        evaluation: of these rows.

    Returns:
        The file; None where a row has no ranking to show.
    """
    if not len(evaluation.top_items) or len(evaluation.top_items) != len(rows):
        return None
    shown = np.linspace(0, len(rows) - 1, min(N_ROWS, len(rows))).astype(int).tolist()
    index_of = {tuple(pair): index for index, pair in enumerate(evaluation.pairs.tolist())}
    part = rows[torch.tensor(shown)]
    users, targets = part[model.USER_ID].tolist(), part[model.ITEM_ID].tolist()
    answers, histories = model.generate_text(part), model.histories(part)
    blocks = [_overview(model, rows, evaluation)]
    for number, (user, target, answer, history) in enumerate(
        zip(users, targets, answers, histories, strict=True), start=1
    ):
        index = index_of[user, target]
        rank, first = int(evaluation.ranks[index]), evaluation.top_items[index, :N_FIRST]
        lines = [
            f"{number}. history: {'… ' if len(history) > N_NEWEST else ''}{_titles(model, history[-N_NEWEST:])}",
            f"    - answer: {model.prompts.layout.title_of(answer) or NOTHING}",
            f"    - ranked first: {_titles(model, first[first > 0].tolist()) or NOTHING}",
            f"    - came next: {_titles(model, [target])}, {f'at rank {rank + 1}' if rank >= 0 else 'not ranked'}",
        ]
        blocks.append("\n".join(lines))
    path = folder / ANSWERS
    path.write_text("\n\n".join(["# Answers to test rows", *blocks]) + "\n", encoding="utf-8")
    return path


def _overview(model: LLMRecommender, rows: Interaction, evaluation: Evaluation) -> str:
    """What all test rows say, in a sentence each."""
    n_rows, first = len(rows), evaluation.top_items[:, 0]
    hits = int(((evaluation.ranks >= 0) & (evaluation.ranks < CUTOFF)).sum())
    seen = {tuple(pair): set(own) for pair, own in zip(_pairs(model, rows), model.histories(rows), strict=True)}
    again = sum(
        int(item in seen[tuple(pair)]) for pair, item in zip(evaluation.pairs.tolist(), first.tolist(), strict=True)
    )
    return (
        f"Of {n_rows:,} test rows, {hits:,} have the item that came next among the first {CUTOFF}. "
        f"{len(np.unique(first[first > 0])):,} different items are ranked first; for {again:,} rows it is one of the "
        "history shown to the model."
    )


def _pairs(model: LLMRecommender, rows: Interaction) -> list[list[int]]:
    pairs: list[list[int]] = torch.stack([rows[model.USER_ID], rows[model.ITEM_ID]], dim=1).tolist()
    return pairs


def _titles(model: LLMRecommender, items: Sequence[int]) -> str:
    """Titles one after another; an item without one by its outside id."""
    catalog = model.catalog
    return "; ".join(catalog.titles[item] or f"item {catalog.tokens[item]}" for item in items)
