"""Interleaved grounding against a merge by hand, with a small untuned LLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_llm.settings.config import Config
from tests.model.test_bigrec import batch_of, trainer_of
from tests.refusals import refused


def merged(model: Any, texts: list[str]) -> list[int]:
    """Titles by round-robin over the lists of the beams: representatives, the best first."""
    items = [item for item in np.flatnonzero(model.catalog.rankable)]
    titles = model.item_embeddings[items].astype(np.float64)
    lists = []
    for vector in model.ground(texts).astype(np.float64):
        distances = np.sqrt(((titles - vector) ** 2).sum(axis=1))
        lists.append([items[index] for index in np.argsort(distances, kind="stable")])
    order: list[int] = []
    for position in range(len(items)):
        for own in lists:
            if own[position] not in order:
                order.append(int(own[position]))
    return order


@pytest.fixture(scope="module")
def beams(gaps: Path, place: Path) -> Any:
    return trainer_of(gaps, place, "--grounding=interleaved", "--num_beams=3")


def test_the_ranking_is_the_lists_of_all_beams_in_turn(beams):
    trainer, rows = beams
    model, batch = trainer.model, batch_of(trainer, rows, "test")
    ranking = model.rank(batch, k=30)
    representative = model.catalog.representative
    for row, texts in enumerate(model.generate_beams(batch)):
        assert len(texts) == 3
        found = [item for item in ranking.top_items[row].tolist() if item]
        assert len(set(found)) == len(found) == model.catalog.has_title.sum()
        titles = list(dict.fromkeys(int(representative[item]) for item in found))
        assert titles == merged(model, texts)
        target = int(batch[model.ITEM_ID][row])
        assert ranking.ranks[row] == (found.index(target) if target in found else -1)
    scores = model.full_sort_predict(batch)
    assert (scores[:, ~model.catalog.has_title] == -np.inf).all()
    twins = [item for item in np.flatnonzero(model.catalog.has_title) if representative[item] != item]
    assert twins and (scores[:, twins] == scores[:, representative[twins]]).all()


def test_one_beam_is_grounding_by_its_distance(gaps, place):
    found = []
    for grounding in ("interleaved", "embedding"):
        trainer, rows = trainer_of(gaps, place, f"--grounding={grounding}", "--num_beams=1")
        found.append(trainer.model.rank(batch_of(trainer, rows, "valid"), k=10))
    assert (found[0].top_items == found[1].top_items).all() and (found[0].ranks == found[1].ranks).all()


@pytest.mark.parametrize("word", ["lm_weight=0.5", "reweight=popularity", "faiss_index=HNSW8"])
def test_what_one_distance_or_a_probability_needs_is_refused(word):
    with refused(word.partition("=")[0], "conflict"):
        Config("BIGRec", "ml-100k", argv=["--grounding=interleaved", "--gamma=1", f"--{word}"])
