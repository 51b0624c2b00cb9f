"""``history_policy: sar``: what the actor is rewarded for, what prompts then show, and what a run keeps of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import recbole_llm
from recbole_llm.prompt import Example
from recbole_llm.settings.config import Config
from recbole_llm.trainer.history_policy import HistoryPolicyStage
from tests.processes import forked_python
from tests.refusals import refused
from tests.rewards import check_rewards
from tests.runs import TINY, working_in
from tests.worlds import make_world

WORDS = dict(word.removeprefix("--").split("=") for word in TINY if "lora" not in word)
SETTINGS = {name: int(value) if value.isdigit() else value for name, value in WORDS.items()}
SETTINGS |= {"epochs": 1, "topk": [1, 10], "metrics": ["NDCG"], "valid_metric": "NDCG@10", "show_progress": False}
SETTINGS |= {"train_sample_size": 40, "valid_sample_size": 12, "test_sample_size": 12, "history_rows": 12}
SETTINGS |= {"history_lengths": [1, 3, 10], "history_updates": 60}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("data") / "asked", n_users=30, n_items=30, seed=5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "saved"


def run(world, saved, **settings):
    with working_in(saved.parent):
        where = {"data_path": str(world.parent), "checkpoint_dir": str(saved)}
        return recbole_llm.run("BIGRec", world.name, **where, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def plain(world, saved):
    return run(world, saved)


@pytest.fixture(scope="module")
def chosen(world, saved, plain):
    return run(world, saved, history_policy="sar")


def test_rewards_are_log_likelihoods_less_the_price_of_tokens(chosen):
    model, rows = chosen.model, chosen._trained.rows
    whole, model.history_cut = model.history_cut, None
    stage = HistoryPolicyStage(model, chosen.config, rows.train, "any")
    histories, rewards = stage._rewards()
    targets = stage._rows.inter_feat[model.ITEM_ID].tolist()
    for row in range(3):
        prompts = [model.prompts.prompt(Example(histories[row][-n:], targets[row])) for n in (1, 3, 10)]
        answer = model.prompts.response(Example(histories[row], targets[row]))
        for index, before in enumerate((0, 1, 3)):
            if before >= len(histories[row]):
                assert np.isnan(rewards[row, index])
                continue
            with torch.no_grad():
                own = -float(model.answer_loss([prompts[index]], [[answer]])[0]) / len(answer)
            price = 0.1 * len(prompts[index]) / len(prompts[2])
            assert rewards[row, index] == pytest.approx(own - price, abs=1e-4)
    model.history_cut = whole


def test_the_price_is_that_of_all_items_whether_or_not_they_are_offered(chosen, monkeypatch):
    """Of a history of ten items and lengths 1 and 3, three items cost less than the price of ten."""
    model = chosen.model
    monkeypatch.setattr(model, "history_cut", None)
    stage, rewards = HistoryPolicyStage(model, chosen.config, chosen._trained.rows.train, "any"), []
    for lengths in ([1, 3], [1, 3, 10]):
        stage.lengths = lengths
        histories, found = stage._rewards()
        rewards.append(found)
    assert max(map(len, histories)) > 3
    np.testing.assert_allclose(rewards[0], rewards[1][:, :2], atol=1e-5)


def test_rewards_are_of_prompts_that_list_candidates_where_those_of_the_run_do(world, saved):
    own = {key: value for key, value in SETTINGS.items() if key not in ("topk", "metrics", "valid_metric", "epochs")}
    where = {"data_path": str(world.parent), "checkpoint_dir": str(saved), "candidates": 4, "epochs": 0}
    with working_in(saved.parent):
        listing = recbole_llm.run("BIGRec", world.name, **where, **own)
    check_rewards(listing, 3)


def test_the_folder_compares_lengths_by_tokens(plain, chosen):
    found = json.loads((chosen.folder / "lengths.json").read_text())
    points = found["points"]
    assert [point["length"] for point in points] == [None, 1, 3, 10]
    assert points[1]["shown"] == pytest.approx(1) and points[1]["tokens"] < points[2]["tokens"] < points[3]["tokens"]
    assert points[1]["tokens"] <= points[0]["tokens"] <= points[3]["tokens"]
    assert points[0]["value"] == pytest.approx(chosen.valid_metrics["ndcg@10"])
    assert points[3]["value"] == pytest.approx(plain.valid_metrics["ndcg@10"])
    assert sum(found["chosen"].values()) == 12
    assert "history_policy" not in plain.result.point and "history_policy=sar" in chosen.result.point
    stages = [json.loads((one.folder / "stages.json").read_text()) for one in (plain, chosen)]
    assert stages[0].items() <= stages[1].items() and set(stages[1]) - set(stages[0]) == {"history-policy"}


def test_lengths_are_rewarded_for_these_weights_at_this_price(chosen):
    def facts(weights, price):
        stage = HistoryPolicyStage(chosen.model, chosen.config, chosen._trained.rows.train, weights)
        stage.settings = replace(stage.settings, history_price=price)
        return stage.facts()

    assert facts("a", 0.1) != facts("b", 0.1) and facts("a", 0.1) != facts("a", 0.2)


def test_the_actor_leaves_the_random_numbers_of_accelerators_alone(chosen, monkeypatch, tmp_path):
    stage = HistoryPolicyStage(chosen.model, chosen.config, chosen._trained.rows.train, "any")
    rewards = np.array([[0.5, 0.1, np.nan], [0.2, np.nan, np.nan]])
    monkeypatch.setattr(stage, "_rewards", lambda: ([[1, 2], [3]], rewards))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the accelerators are reseeded"))
    before = torch.get_rng_state()
    stage.compute(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_where_tokens_are_dear_one_item_is_shown(world, saved):
    dear = run(world, saved, history_policy="sar", history_price=1000.0, history_updates=100)
    assert json.loads((dear.folder / "lengths.json").read_text())["chosen"] == {"1": 12}
    rows = dear._trained.rows.test.inter_feat
    assert {len(history) for history in dear.model.histories(rows)} == {1}


def test_the_same_seed_and_a_new_process_give_the_same(world, saved, chosen, tmp_path):
    again = run(world, tmp_path / "saved", history_policy="sar")  # nothing is found there
    read = [(one.folder / "test_ranks.csv").read_bytes() for one in (chosen, again)]
    assert read[0] == read[1]
    code = """
        import sys
        from recbole_llm import load_run
        run = load_run(sys.argv[1])
        print(run.recommend(users=["u1", "u9"], k=8).to_json())
    """
    asked = chosen.recommend(users=["u1", "u9"], k=8).to_json()
    assert forked_python(code, chosen.folder, cwd=tmp_path).stdout.splitlines()[-1] == asked


def test_bad_settings_are_refused(world):
    for model, settings, key, kind in (
        ("BIGRec", {"history_policy": "rl"}, "history_policy", "value"),
        ("BIGRec", {"history_lengths": [0]}, "history_lengths", "value"),
        ("TALLRec", {"history_policy": "sar"}, "history_policy", "conflict"),
        ("SASRec", {"history_policy": "sar"}, "history_policy", "unknown"),
    ):
        with refused(key, kind):
            Config(model, "ml-100k", settings=settings)
