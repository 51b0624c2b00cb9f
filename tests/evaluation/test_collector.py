"""Ranks against sorting in plain Python, ties included, and RecBole's collector where there are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector, Evaluator

from recbole_llm.evaluation.collector import RowCollector, unrounded_evaluator
from recbole_llm.grounding.ranking import target_ranks


class Settings(dict):
    """A config with the keys a collector reads."""

    def __init__(self, topk: list[int], **more: object) -> None:
        base = {
            "metrics": ["Recall", "NDCG", "MRR", "Hit"],
            "topk": topk,
            "device": torch.device("cpu"),
            "eval_args": {"mode": {"valid": "full", "test": "full"}},
            "metric_decimal_place": 4,
            "USER_ID_FIELD": "user_id",
            "model": "stub",
            "rerank": "none",
        }
        super().__init__(base | more)


def order(row: list[float]) -> list[int]:
    """Higher first, lower id first among equals."""
    return sorted(range(len(row)), key=lambda item: (-row[item], item))


def collect(collector: Collector, scores: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    rows = torch.arange(len(scores))
    collector.eval_batch_collect(scores, Interaction({"user_id": rows + 1}), rows, targets)
    return collector.get_data_struct()


tied_scores = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, 1.5, float("-inf")]), min_size=6, max_size=6), min_size=1, max_size=5
)


@settings(max_examples=100)
@given(tied_scores)
def test_ranks_are_those_of_a_sort_with_ties_by_id(rows):
    scores = torch.tensor(rows)
    for target in range(6):
        ranks = target_ranks(scores, torch.full((len(rows),), target))
        expected = [order(row).index(target) if np.isfinite(row[target]) else -1 for row in rows]
        assert ranks.tolist() == expected


def test_without_ties_it_is_recboles_collector():
    torch.manual_seed(0)
    scores, targets = torch.rand(50, 40), torch.randint(0, 40, (50,))
    ours, theirs = RowCollector(Settings([1, 5, 20])), Collector(Settings([1, 5, 20]))
    a, b = (collect(one, scores.clone(), targets) for one in (ours, theirs))
    assert torch.equal(a["rec.topk"], b["rec.topk"])
    evaluator = Evaluator(Settings([1, 5, 20]))
    assert evaluator.evaluate(a) == evaluator.evaluate(b)


def test_ndcg_and_hit_of_given_ranks():
    ranks = [0, 1, 4, 5, 9, 10, 49, 50, 1000, 3]
    scores = torch.arange(1200, 0, -1.0).repeat(len(ranks), 1)
    collector = RowCollector(Settings([1, 5, 10, 20, 50]))
    metrics = unrounded_evaluator(Settings([1, 5, 10, 20, 50])).evaluate(
        collect(collector, scores, torch.tensor(ranks))
    )
    assert [metrics[f"hit@{k}"] for k in (1, 5, 10, 20, 50)] == [0.1, 0.4, 0.6, 0.7, 0.8]
    assert metrics["ndcg@5"] == pytest.approx(0.244845911888, abs=1e-11)
    assert metrics["ndcg@50"] == pytest.approx(0.354896551235, abs=1e-11)
    assert collector.ranks.tolist() == ranks


def test_topk_above_the_catalogue_counts_every_ranked_item_and_no_other():
    scores = torch.tensor([[-torch.inf, 3.0, 2.0, -torch.inf], [-torch.inf, 1.0, 2.0, 3.0]])
    collector = RowCollector(Settings([2, 50]))
    metrics = unrounded_evaluator(Settings([2, 50])).evaluate(collect(collector, scores, torch.tensor([3, 1])))
    assert metrics["hit@2"] == 0 and metrics["hit@50"] == 0.5
    assert collector.ranks.tolist() == [-1, 2] and collector.best.shape == (2, 50)


def test_batches_add_up_and_forgetting_starts_anew():
    torch.manual_seed(1)
    scores, targets = torch.rand(9, 12), torch.randint(0, 12, (9,))
    whole, parts = RowCollector(Settings([3])), RowCollector(Settings([3]))
    collect(whole, scores, targets)
    for cut in (slice(0, 4), slice(4, 9)):
        collect(parts, scores[cut], targets[cut])
    assert np.array_equal(whole.ranks, parts.ranks)
    parts.forget()
    assert len(parts.ranks) == 0


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="stub gave a score that is not a number"):
        collect(RowCollector(Settings([1])), torch.tensor([[0.0, float("nan")]]), torch.tensor([1]))
