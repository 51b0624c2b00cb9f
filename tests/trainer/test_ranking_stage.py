"""The lists that teach a classic model: whose they are, and what tells them from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from recbole_llm.grounding import EmbeddingGrounding
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.registry import find_choice
from recbole_llm.settings.training import TeachingSettings
from recbole_llm.stages import fingerprint
from recbole_llm.trainer.reweighting import Reweighting
from recbole_llm.trainer.teaching import RankingStage
from tests.model.test_bigrec import trainer_of

SETTINGS = TeachingSettings(rows=12, topk=4)


@pytest.fixture(scope="module")
def place(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lists") / "saved"
    place.mkdir()
    (place / "llama").symlink_to(llama)
    return place


@pytest.fixture(scope="module")
def stage_of(world: Path, place: Path) -> Any:
    """``stage_of("--faiss_index=HNSW32")``: the stage of an untuned BIGRec; with a strength, re-weighted."""

    def stage_of(*words: str, gamma: float | None = None) -> RankingStage:
        trainer, rows = trainer_of(world, place, *words)
        model = trainer.model
        if gamma is not None:
            model.rescore = Reweighting(trainer.config, model, "ndcg@10").rescorer(gamma)
        return RankingStage(model, {}, rows.train, SETTINGS)

    return stage_of


@pytest.mark.parametrize("how", ["reweight", "lm_weight"])
def test_lists_are_those_of_the_whole_rows_where_users_are_read(stage_of, tmp_path, how):
    words = ("--recommender=BPR", "--recommender_config={epochs: 2}")
    if how == "reweight":
        stage = stage_of("--reweight=collaborative", *words, gamma=1.0)
    else:
        stage = stage_of("--grounding=likelihood", "--lm_weight=0.2", *words)
    stage.compute(tmp_path)
    ids, items = stage.load(tmp_path)
    model, feat = stage._model, stage._rows.inter_feat
    order = {number: row for row, number in enumerate(feat["sample_id"].tolist())}
    chosen = feat[torch.tensor([order[number] for number in ids.tolist()])]
    np.testing.assert_array_equal(items, model.rank(chosen, 4).top_items)
    chosen["user_id"] = chosen["user_id"].flip(0)
    assert not np.array_equal(items, model.rank(chosen, 4).top_items)


@pytest.mark.parametrize("grounding", ["embedding", "interleaved", "constrained", "likelihood"])
def test_every_setting_of_the_grounding_is_told(stage_of, grounding):
    told = stage_of(f"--grounding={grounding}", "--num_beams=10").facts()["answering"]
    assert {"grounding", "num_beams", "reweight", *find_choice("grounding", grounding).settings} <= set(told)


def test_lists_of_another_index_or_strength_are_others(stage_of, monkeypatch):
    flat = fingerprint(stage_of().facts())
    popular = [stage_of("--reweight=popularity", gamma=gamma).facts() for gamma in (1.0, 2.0, 1.0)]
    assert all(facts["answering"]["reweight"] == "popularity" for facts in popular)
    indexed = [stage_of("--faiss_index=HNSW32"), stage_of("--faiss_index=HNSW32", "--faiss_search=efSearch=64")]
    told = [flat, *(fingerprint(facts) for facts in popular), *(fingerprint(stage.facts()) for stage in indexed)]
    assert told[1] == told[3] and len(set(told)) == len(told) - 1
    assert fingerprint(stage_of().facts()) == flat

    class Other(EmbeddingGrounding):
        settings: ClassVar[tuple[str, ...]] = ("topk",)

    monkeypatch.setattr("recbole_llm.trainer.teaching.find_choice", lambda axis, name: Other)
    assert stage_of().facts()["answering"]["topk"] == [1, 5, 10]


def test_another_recommender_has_other_lists(stage_of, monkeypatch):
    stage = stage_of()
    before = fingerprint(stage.facts())
    monkeypatch.setattr(stage._model, "__class__", type("Other", (BIGRec,), {}))
    assert fingerprint(stage.facts()) != before


def test_lists_of_other_weights_or_rows_are_others(stage_of):
    own = stage_of()
    rows = own._rows
    fewer = rows.copy(rows.inter_feat[torch.arange(len(rows) - 1)])
    given = [({"fine-tune": "a"}, rows), ({"fine-tune": "b"}, rows), ({"fine-tune": "a"}, fewer)]
    told = {fingerprint(RankingStage(own._model, stages, some, SETTINGS).facts()) for stages, some in given}
    assert len(told) == len(given)
