"""Rows are ranked by titles in blocks, so that a table of scores never exceeds its budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from recbole_llm.grounding import titles
from recbole_llm.grounding.base import PromptedRows
from recbole_llm.grounding.titles import TitleGrounding

N_ITEMS = 50


class Scores(TitleGrounding):
    """Scores that are the row's own."""

    def __init__(self) -> None:
        self.model: Any = SimpleNamespace(catalog=SimpleNamespace(n_items=N_ITEMS))
        self.sizes: list[int] = []

    def _title_scores(self, rows: PromptedRows) -> torch.Tensor:
        self.sizes.append(len(rows))
        return torch.stack(
            [torch.from_numpy(np.random.default_rng(list(history)).random(N_ITEMS)) for history in rows.histories]
        )


def test_blocks_rank_as_one_table(monkeypatch):
    prompts: list[list[int] | None] = [[1, row] if row % 3 else None for row in range(11)]
    rows, targets = PromptedRows([[row] for row in range(11)], prompts), torch.arange(11)
    whole = Scores()
    expected = whole.rank(rows, targets, 5)
    monkeypatch.setattr(titles, "TABLE_BYTES", 3 * 8 * N_ITEMS + 1)
    blocks = Scores()
    found = blocks.rank(rows, targets, 5)
    assert whole.sizes == [7] and blocks.sizes == [2, 2, 2, 1]
    for name in ("ranks", "top_items", "top_scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert blocks.rank(rows, None, 5).top_items.tolist() == expected.top_items.tolist()
    assert len(blocks.rank(PromptedRows([], []), None, 5)) == 0
