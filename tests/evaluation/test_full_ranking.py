"""A model that ranks by itself is evaluated as its scores would be; what replaces scores alone is scored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_llm.evaluation import CandidateChoice, ClickPrediction, Evaluation, FullRanking
from recbole_llm.evaluation.base import joined_ids, split_ids
from recbole_llm.evaluation.collector import RowCollector, unrounded_evaluator
from recbole_llm.evaluation.full_ranking import ranks_by_itself
from recbole_llm.grounding.ranking import rank_scores
from tests.evaluation.test_collector import Settings, tied_scores

BEYOND_ACCURACY = ["NDCG", "MRR", "Hit", "ItemCoverage", "ShannonEntropy"]


@settings(max_examples=50)
@given(tied_scores, st.integers(1, 8), st.data())
def test_a_ranking_gives_what_the_scores_behind_it_give(rows, k, data):
    scores = torch.tensor(rows)
    scores[:, 0] = -torch.inf
    targets = torch.tensor(data.draw(st.lists(st.integers(1, 5), min_size=len(rows), max_size=len(rows))))
    users = torch.arange(len(rows)) + 1
    config = Settings([1, k], metrics=BEYOND_ACCURACY)
    dense, ranked = RowCollector(config), RowCollector(config)
    for collector in (dense, ranked):
        collector.data_struct.set("data.num_items", 6)
    dense.eval_batch_collect(scores, Interaction({"user_id": users}), torch.arange(len(rows)), targets)
    ranking = rank_scores(scores, targets, k)
    ranked.collect_ranking(users, targets, torch.from_numpy(ranking.ranks), torch.from_numpy(ranking.top_items))
    for name in ("ranks", "best", "pairs"):
        assert np.array_equal(getattr(dense, name), getattr(ranked, name)), name
    evaluate = unrounded_evaluator(config).evaluate
    assert evaluate(dense.get_data_struct()) == evaluate(ranked.get_data_struct())


def test_a_metric_of_all_scores_needs_them():
    assert RowCollector(Settings([1], metrics=["GAUC"])).needs_scores
    assert not RowCollector(Settings([1], metrics=BEYOND_ACCURACY)).needs_scores


class Scores:
    def full_sort_predict(self, interaction: Any) -> Any: ...


class Ranks(Scores):
    def full_sort_predict(self, interaction: Any) -> Any: ...

    def rank(self, interaction: Any, k: int) -> Any: ...


class OtherScores(Ranks):
    def full_sort_predict(self, interaction: Any) -> Any: ...


class OtherRanks(OtherScores):
    def rank(self, interaction: Any, k: int) -> Any: ...


@pytest.mark.parametrize(
    ("model", "expected"), [(Scores, False), (Ranks, True), (OtherScores, False), (OtherRanks, True)]
)
def test_the_class_that_says_more_of_the_ranking_is_believed(model, expected):
    assert ranks_by_itself(model()) == expected


ODD = ["NA", "007", "1e5", "None", "a,b", 'a"b', " x"]


@pytest.mark.parametrize(
    ("protocol", "own"),
    [
        (FullRanking, {"rank": pd.array([1, None, 3, 4, 5, 6, 7], dtype="Int64"), "top_items": ["", *ODD[1:]]}),
        (ClickPrediction, {"label": [0, 1] * 3 + [1], "score": [0.1, 1e-17, 1 / 3, 0.0, 1.0, 0.5, 2 / 3]}),
        (
            CandidateChoice,
            {"answer": ODD, **{name: [1] * 7 for name in CandidateChoice.columns[3:7]}, "candidates": ODD},
        ),
    ],
)
def test_rows_are_read_as_they_were_written_whatever_ids_look_like(tmp_path, protocol, own):
    rows = pd.DataFrame({"user_id": ODD, "item_id": ODD[::-1], **own})
    protocol.write(tmp_path, "test", Evaluation({}, rows))
    assert tuple(rows) == protocol.columns
    pd.testing.assert_frame_equal(protocol.read(tmp_path, "test"), rows)


def test_lists_of_items_are_joined_without_their_padding():
    dataset = SimpleNamespace(iid_field="item_id", field2id_token={"item_id": np.array(["[PAD]", "x", "y"])})
    assert joined_ids(dataset, np.array([[2, 1, 0], [0, 0, 0]])) == ["y x", ""]


tokens = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
ODD_TOKENS = ("a b", " a", "a ", "a", '["a"]', "[]", "[PAD]", "NA", "\u2028", "\u00a0", "a,b", '"', "\\")


@given(st.lists(tokens | st.sampled_from(ODD_TOKENS), min_size=1, max_size=6, unique=True), st.randoms())
def test_lists_of_any_ids_are_taken_apart_as_they_were_joined(ids, random):
    dataset = SimpleNamespace(iid_field="item_id", field2id_token={"item_id": np.array(["[PAD]", *ids], dtype=object)})
    lists = np.array([[random.randrange(len(ids) + 1) for _ in range(3)] for _ in range(4)])
    expected = [[ids[item - 1] for item in row if item] for row in lists.tolist()]
    joined = joined_ids(dataset, lists)
    assert [split_ids(text) for text in joined] == expected
    if all(token.split() == [token] and token[0] != "[" for token in ids):  # as other programs read it
        assert joined == [" ".join(row) for row in expected]


def test_gains_of_rows():
    ranks = FullRanking.gains(pd.DataFrame({"rank": pd.array([1, 10, 11, None], dtype="Int64")}))
    np.testing.assert_allclose(ranks, [1, 1 / np.log2(11), 0, 0])
    assert CandidateChoice.gains(pd.DataFrame({"hit": [1, 0]})).tolist() == [1.0, 0.0]
    np.testing.assert_allclose(
        ClickPrediction.gains(pd.DataFrame({"label": [1, 0], "score": [0.25, 0.25]})), np.log([0.25, 0.75])
    )
