"""Sampled modes: each row is answered once, and its sampled items are taken from its one list of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.evaluator import Collector, Evaluator
from recbole.trainer import Trainer

import recbole_llm
from recbole_llm.data.loaders import eval_loader
from recbole_llm.model import free_answers
from tests.runs import working_in

N_VALID, N_TEST, N_SHOWN = 5, 7, 7


@pytest.fixture(scope="module")
def sampled(world: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[int]]:
    """A run that ranks among ten drawn items, and how many prompts each of its searches answered."""
    folder, searches = tmp_path_factory.mktemp("sampled"), []
    search = free_answers.beam_search

    def counted(llm: Any, prompts: Any, **options: Any) -> Any:
        searches.append(len(prompts))
        return search(llm, prompts, **options)

    own = {"data_path": str(world.parent), "checkpoint_dir": str(folder / "saved"), "epochs": 0, "topk": [1, 5]}
    own |= {"valid_metric": "NDCG@5", "show_progress": False, "eval_args": {"mode": "uni10"}, "num_beams": 1}
    own |= {"valid_sample_size": N_VALID, "test_sample_size": N_TEST, "llm_path": str(llama)}
    with pytest.MonkeyPatch.context() as patch, working_in(folder):
        patch.setattr(free_answers, "beam_search", counted)
        return recbole_llm.run("BIGRec", "world", **own), searches


def test_every_row_is_answered_once(sampled):
    """The rows of the report, all test rows here, are answered once more, together."""
    assert sum(sampled[1]) == N_VALID + N_TEST + N_SHOWN


def test_metrics_are_recboles_own_and_those_of_the_full_scores(sampled):
    run = sampled[0]
    trained = run._asked()
    loader = eval_loader(run.config, trained.rows, "test")
    ranks, keys = [], [run.config[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD")]
    with torch.no_grad():
        for pairs, *_ in loader:
            users, items = (pairs[key].numpy() for key in keys)
            scores = run.model.full_sort_predict(pairs).float().numpy()[np.arange(len(items)), items]
            for user in dict.fromkeys(users.tolist()):  # its target stands before its ten drawn items
                own, drawn = scores[users == user], items[users == user]
                assert len(own) == 11 and len(set(drawn.tolist())) > 1
                first = {item: score for item, score in zip(drawn.tolist(), own.tolist(), strict=True)}
                target = drawn[0]
                ranks.append(sum((-first[item], item) < (-first[target], target) for item in first))
    ranks = np.array(ranks)
    for k in (1, 5):
        assert run.metrics[f"hit@{k}"] == pytest.approx((ranks < k).mean())
        assert run.metrics[f"ndcg@{k}"] == pytest.approx(np.where(ranks < k, 1 / np.log2(ranks + 2), 0).mean())
    plain = Trainer(run.config, run.model)
    plain.eval_collector, plain.evaluator = Collector(run.config), Evaluator(run.config)
    found = plain.evaluate(loader, load_best_model=False, show_progress=False)
    assert dict(found) == {name: pytest.approx(run.metrics[name], abs=1e-4) for name in found}
