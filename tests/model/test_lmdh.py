"""LMDH as a model: its weights, its lists, and what a run keeps of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recbole_llm
from recbole_llm.data.loaders import train_loader
from recbole_llm.data.rows import load_rows
from recbole_llm.model.lmdh import LMDH
from recbole_llm.rerank import ModularDispersionBandit, greedy_list
from recbole_llm.settings.config import Config
from tests.processes import forked_python
from tests.refusals import refused
from tests.runs import working_in
from tests.worlds import make_world

SETTINGS = {"topk": [1, 5], "metrics": ["NDCG"], "valid_metric": "NDCG@5", "show_progress": False}
SETTINGS |= {"category_field": "class", "lmdh_topn": 12, "lmdh_width": 4, "lmdh_ridge": 2.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("data") / "listed", n_users=25, n_items=30, seed=2)


@pytest.fixture(scope="module")
def learnt(world):
    """A model that has seen all rows, and the rows as it saw them."""
    config = Config("LMDH", world.name, settings={**SETTINGS, "data_path": str(world.parent)})
    rows = load_rows(config, few_shot=False)
    model, seen = LMDH(config, rows.train), []
    for batch in train_loader(config, rows):
        state = model._rng.bit_generator.state
        drawn = model._draw(batch[model.ITEM_SEQ], batch[model.ITEM_ID])
        model._rng.bit_generator.state = state
        model.calculate_loss(batch)
        seen.append((batch, torch.cat([batch[model.ITEM_ID][:, None], drawn], dim=1)))
    return model.eval(), rows, seen


def test_weights_are_those_of_the_bandit_around_the_prior(learnt):
    """Row by row into the bandit of blocks: all rows for the prior, a user's own rows around it."""
    model, _, seen = learnt
    model._settle()
    crowd = ModularDispersionBandit(model.n_relevance, model.n_dispersion, ridge=1.0)
    own: dict[int, list[tuple[np.ndarray, ...]]] = {}
    for batch, candidates in seen:
        x = model._features(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN], candidates).numpy()
        for row in range(len(batch)):
            history = batch[model.ITEM_SEQ][row, : batch[model.ITEM_SEQ_LEN][row]]
            near = model._distances(candidates[row][None], history[-5:][None])[0].sum(dim=1).numpy()
            feedback = np.eye(candidates.shape[1])[0]
            crowd.update(x[row], near, feedback)
            own.setdefault(int(batch[model.USER_ID][row]), []).append((x[row], near, feedback))
    theta, beta = crowd.weights()
    assert model.weights[0].numpy() == pytest.approx(np.concatenate([theta, beta]), abs=1e-6)
    for user in list(own)[:5]:
        bandit = ModularDispersionBandit(
            model.n_relevance, model.n_dispersion, ridge=2.0, prior={"theta": theta, "beta": beta}
        )
        for x_row, near, feedback in own[user]:
            bandit.update(x_row, near, feedback)
        assert model.weights[user].numpy() == pytest.approx(np.concatenate(bandit.weights()), abs=1e-6)


def test_negatives_are_no_items_of_the_row(learnt):
    model, _, seen = learnt
    for batch, candidates in seen:
        taken = torch.cat([batch[model.ITEM_SEQ], batch[model.ITEM_ID][:, None]], dim=1)
        assert not (candidates[:, 1:, None] == taken[:, None]).any() and (candidates > 0).all()


def test_lists_are_greedy_by_relevance_and_distance(learnt):
    model, rows, _ = learnt
    batch = rows.test.inter_feat
    relevance, scores = model._relevance(batch), model.full_sort_predict(batch)
    pairs = batch[model.ITEM_ID].clone()
    assert model.predict(batch).numpy() == pytest.approx(relevance.gather(1, pairs[:, None])[:, 0].numpy(), abs=1e-5)
    for row in range(5):
        beta = model.weights[batch[model.USER_ID][row], model.n_relevance :]
        items = torch.topk(relevance[row, 1:], 12).indices + 1
        items = items.sort().values
        table = (model._distances(items[None], items[None])[0] * beta).sum(dim=2)
        order, _ = greedy_list(relevance[row, items], table, 5)
        best = torch.sort(scores[row], descending=True, stable=True).indices
        assert best[:5].tolist() == items[order].tolist()
        assert set(best[:12].tolist()) == set(items.tolist())
        behind = [item for item in best[12:].tolist() if item]
        assert behind == sorted(behind, key=lambda item: (-float(relevance[row, item]), item))


def test_of_equally_relevant_items_the_lower_ids_are_listed(learnt, monkeypatch):
    """As cold items are, which differ in nothing that the model sees."""
    model, rows, _ = learnt
    batch = rows.test.inter_feat[torch.arange(4)]
    relevance = torch.where(torch.arange(model.n_items) % 7 == 3, 1.0, 0.0).double().expand(4, -1)
    monkeypatch.setattr(model, "_relevance", lambda interaction: relevance.clone())
    scores, before = model.full_sort_predict(batch), np.flatnonzero(relevance[0].numpy()).tolist()
    lower = [item for item in range(1, model.n_items) if item not in before]
    for best in torch.sort(scores, descending=True, stable=True).indices[:, :12].tolist():
        assert sorted(best) == sorted(before + lower[: 12 - len(before)])


def test_distances_are_those_of_pairs(learnt):
    model, _, _ = learnt
    found = model._distances(torch.tensor([[1, 2]]), torch.tensor([[2, 3, 4]]))[0]
    kinds = [set(np.flatnonzero(model.members[item])) for item in range(5)]
    for i, a in enumerate((1, 2)):
        for j, b in enumerate((2, 3, 4)):
            near = torch.linalg.norm(model.vectors[a] - model.vectors[b]) / 2
            jaccard = 0.0 if a == b else 1 - len(kinds[a] & kinds[b]) / len(kinds[a] | kinds[b])
            assert found[i, j].tolist() == pytest.approx([float(near), jaccard], abs=1e-6)


def test_a_run_is_repeated_kept_and_asked_again(world, tmp_path):
    folders = {"data_path": str(world.parent), "checkpoint_dir": str(tmp_path / "saved")}
    with working_in(tmp_path):
        one, other = (recbole_llm.run("LMDH", world.name, **SETTINGS, **folders) for _ in range(2))
    read = [(run.folder / "test_ranks.csv").read_bytes() for run in (one, other)]
    assert read[0] == read[1] and one.metrics == other.metrics
    code = """
        import sys
        from recbole_llm import load_run
        run = load_run(sys.argv[1])
        print(run.recommend(users=["u1", "u9"], k=8).to_json())
        print(run.recommend([["i3", "i7"]], k=8).to_json())
    """
    asked = [one.recommend(users=["u1", "u9"], k=8).to_json(), one.recommend([["i3", "i7"]], k=8).to_json()]
    assert forked_python(code, one.folder, cwd=tmp_path).stdout.splitlines()[-2:] == asked


def test_bad_settings_are_refused(world):
    for settings, key, kind in (
        ({"lmdh_ridge": 0}, "lmdh_ridge", "value"),
        ({"lmdh_windw": 3}, "lmdh_windw", "unknown"),
        ({"lmdh_topn": 1}, "lmdh_topn", "value"),
    ):
        with refused(key, kind):
            Config("LMDH", world.name, settings={**SETTINGS, **settings, "data_path": str(world.parent)})
    with refused("lmdh_ridge", "unknown"):
        Config("SASRec", world.name, settings={"lmdh_ridge": 1.0, "data_path": str(world.parent)})
