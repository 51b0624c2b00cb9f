"""Rows are ranked by titles in blocks, so that a table of scores never exceeds its budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
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


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_another_recommenders_scores_are_read_where_the_llm_decides_in_part(weight):
    model: Any = SimpleNamespace(
        backbone=SimpleNamespace(pad_token_id=3), row_inputs=lambda histories: {}, generation_budget=9
    )
    grounding = Scores()
    grounding.model = model
    settings = {"lm_weight": weight, "title_length_penalty": 0.5, "title_renormalize": True}
    grounding.declared = SimpleNamespace(**settings)
    scores = np.arange(6.0).reshape(2, 3)
    found = grounding._options(PromptedRows([[1], [2]], [[5], [6]], item_scores=scores))
    assistant = found.pop("assistant")
    assert found == {
        "pad_token_id": 3,
        "length_penalty": 0.5,
        "renormalize": True,
        "row_inputs": {},
        "max_batch_tokens": 9,
    }
    without = PromptedRows([[1], [2]], [[5], [6]])
    if weight == 1:
        assert assistant is None and grounding._options(without)["assistant"] is None
        return
    assert assistant.lm_weight == weight and np.array_equal(assistant.item_scores, scores)
    with pytest.raises(ValueError, match="lm_weight: the rows have no scores of another recommender"):
        grounding._options(without)
