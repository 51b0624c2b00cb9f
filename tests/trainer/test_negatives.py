"""Wrong answers are wrong, whichever way they are drawn, and a row's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_llm.data.loaders import train_loader
from recbole_llm.data.rows import SAMPLE_ID
from recbole_llm.selection.row_selection import select_rows
from recbole_llm.trainer.negatives import contrasts_across, draw_negatives
from recbole_llm.trainer.preference import _some
from tests.model.test_bigrec import trainer_of


@pytest.fixture(scope="module")
def drawn_from(world: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model and its training rows."""
    place = tmp_path_factory.mktemp("negatives") / "saved"
    shutil.copytree(llama, place / "llama")
    trainer, rows = trainer_of(world, place, "--train_sample_size=20")
    found, _ = select_rows(trainer.model, trainer.config, train_loader(trainer.config, rows).dataset, None)
    return trainer.model, found


@pytest.mark.parametrize("kind", ["random", "popular", "similar"])
def test_wrong_answers_are_other_titles_that_the_history_lacks(drawn_from, kind):
    model, rows = drawn_from
    found, titles = draw_negatives(model, rows, kind, 3), model.catalog.representative
    targets = rows.readable[model.ITEM_ID].tolist()
    for own, history, target in zip(found, rows.histories, targets, strict=True):
        items = own[own > 0]
        assert len(set(items.tolist())) == len(items) == 3 and model.catalog.rankable[items].all()
        assert not set(titles[items]) & {*titles[list(history)].tolist(), int(titles[target])}
    some = np.array([7, 2])
    alone = _some(rows, some)
    assert alone.readable[SAMPLE_ID].tolist() == rows.readable[SAMPLE_ID][torch.from_numpy(some)].tolist()
    assert (draw_negatives(model, alone, kind, 3) == found[some]).all()
    across = contrasts_across(model, rows, found)
    for row, (history, target) in enumerate(zip(rows.histories, targets, strict=True)):
        known = {*titles[list(history)].tolist(), int(titles[target])}
        assert across[row].tolist() == [int(titles[item]) not in known for item in found.flatten()]


def test_similar_ones_are_the_nearest_that_may_stand(drawn_from):
    model, rows = drawn_from
    found, vectors = draw_negatives(model, rows, "similar", 2), model.item_embeddings.astype(np.float64)
    for own, history, target in zip(found, rows.histories, rows.readable[model.ITEM_ID].tolist(), strict=True):
        distances = np.linalg.norm(vectors - vectors[target], axis=1)
        others = [item for item in np.flatnonzero(model.catalog.rankable) if item not in (*history, target)]
        assert own.tolist() == sorted(others, key=lambda item: (distances[item], item))[:2]


def test_a_catalogue_that_runs_out_gives_fewer(drawn_from):
    model, rows = drawn_from
    found = draw_negatives(model, rows, "random", 50)
    n_titles = int(model.catalog.rankable.sum())
    for own, history in zip(found, rows.histories, strict=True):
        assert (own > 0).sum() == n_titles - len(set(history)) - 1 and not own[(own > 0).sum() :].any()
