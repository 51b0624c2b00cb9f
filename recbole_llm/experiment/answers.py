"""``answers.md``: some test rows in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.evaluation import Evaluation
from recbole_llm.grounding.rank_metrics import hit_at
from recbole_llm.model.base import LLMRecommender

ANSWERS = "answers.md"
N_NEWEST, N_FIRST = 5, 5  # items shown of a history and of a ranking
CUTOFF = 10
NOTHING = "(none)"


def write_answers(
    folder: Path,
    model: LLMRecommender,
    records: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    rows: Interaction,
    evaluation: Evaluation,
) -> Path:
    """Write ``answers.md``: the rows of ``examples.json`` with history, answer, ranking and target.

    The answer is what the model writes when nothing keeps it to titles; the ranking is that of its grounding.

    Args:
        folder: folder of the run.
        model: with the weights that were evaluated.
        records: records of the rows, as ``examples.json`` holds them.
        texts: what the model wrote to each.
        rows: all test rows.
        evaluation: evaluation of these.

    Returns:
        The file.
    """
    blocks = [_overview(model, rows, evaluation)]
    for number, (record, text) in enumerate(zip(records, texts, strict=True), start=1):
        history, best = record["history"], [item["title"] for item in record["items"][:N_FIRST]]
        where = record["outcome"] if record["outcome"] == "not ranked" else f"at {record['outcome']}"
        lines = [
            f"{number}. history: {'… ' if len(history) > N_NEWEST else ''}{'; '.join(history[-N_NEWEST:])}",
            f"    - answer: {model.prompts.layout.title_of(text) or NOTHING}",
            f"    - ranked first: {'; '.join(best) or NOTHING}",
            f"    - came next: {record['target']}, {where}",
        ]
        blocks.append("\n".join(lines))
    path = folder / ANSWERS
    path.write_text("\n\n".join(["# Answers to test rows", *blocks]) + "\n", encoding="utf-8")
    return path


def _overview(model: LLMRecommender, rows: Interaction, evaluation: Evaluation) -> str:
    """What all test rows say, in a sentence each."""
    n_rows, first = len(rows), evaluation.top_items[:, 0]
    hits = int(hit_at(evaluation.ranks, CUTOFF).sum())
    seen = {tuple(pair): set(own) for pair, own in zip(_pairs(model, rows), model.histories(rows), strict=True)}
    again = sum(
        int(item in seen[tuple(pair)]) for pair, item in zip(evaluation.pairs.tolist(), first.tolist(), strict=True)
    )
    return (
        f"Of {n_rows:,} test rows, {hits:,} have the item that came next among the first {CUTOFF}. "
        f"{len(np.unique(first[first > 0])):,} different items are ranked first; for {again:,} rows it is one of the "
        "history that the model reads."
    )


def _pairs(model: LLMRecommender, rows: Interaction) -> list[list[int]]:
    pairs: list[list[int]] = torch.stack([rows[model.USER_ID], rows[model.ITEM_ID]], dim=1).tolist()
    return pairs
