"""SAR as a model: what the backbone is shown, what the actor learns from, and what a run keeps."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import recbole_llm
from recbole_llm.data.loaders import train_loader
from recbole_llm.data.rows import load_rows
from recbole_llm.history import discounted_returns
from recbole_llm.model.sar import SAR, UserBatches
from recbole_llm.settings.config import Config
from tests.refusals import refused
from tests.runs import asked_in_new_process, working_in
from tests.worlds import make_world

SIZES = {"hidden_size": 16, "inner_size": 32, "n_layers": 1, "n_heads": 2, "sar_state_dim": 8}
SETTINGS = {**SIZES, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "topk": [1, 10], "metrics": ["NDCG", "Hit"]}
SETTINGS |= {"valid_metric": "NDCG@10", "show_progress": False, "sar_lengths": [1, 2, 4, 10], "sar_warmup_epochs": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("data") / "shortened", n_users=50, n_items=40, seed=4)


@pytest.fixture(scope="module")
def built(world):
    config = Config("SAR", world.name, settings={**SETTINGS, "data_path": str(world.parent), "sar_gamma": 0.5})
    rows = load_rows(config, few_shot=False)
    torch.manual_seed(0)
    return SAR(config, rows.train).eval(), rows, config


def test_batches_hold_whole_users_in_time(built):
    model, rows, config = built
    config["train_batch_size"] = 64
    batches = UserBatches(train_loader(config, rows), seed=1)
    seen = list(batches)
    users = [set(batch["user_id"].tolist()) for batch in seen]
    assert sum(map(len, users)) == len(set.union(*users)) == 50 and len(seen) > 2
    assert sum(map(len, seen)) == len(rows.train) and max(map(len, seen)) <= 64
    for batch in seen:
        for user in set(batch["user_id"].tolist()):
            times = batch["timestamp"][batch["user_id"] == user]
            assert (times.diff() > 0).all()
    assert [batch["user_id"].tolist() for batch in batches] != [batch["user_id"].tolist() for batch in seen]


def test_rewards_and_returns_by_their_definitions(built):
    model, rows, _ = built
    batch = rows.train.inter_feat[torch.arange(40)]
    chosen = torch.arange(40) % 2
    returns = model._returns(batch, chosen)
    rewards = torch.empty(40)
    for row in range(40):
        one = batch[torch.tensor([row])]
        history = one["item_id_list"][0, : one["item_length"][0]][-model.lengths[chosen[row]] :]
        padded = torch.zeros(1, 10, dtype=torch.long)
        padded[0, : len(history)] = history
        shown = {"item_id_list": padded, "item_length": torch.tensor([len(history)])}
        scores = model.backbone.full_sort_predict(shown)[0]
        scores[0] = -torch.inf
        rewards[row] = scores.log_softmax(dim=0)[one["item_id"]].clamp(min=-10)
    for user in set(batch["user_id"].tolist()):
        own = batch["user_id"] == user
        assert returns[own].tolist() == pytest.approx(discounted_returns(rewards[own], 0.5).tolist(), abs=1e-4)


@pytest.mark.parametrize(("reward", "expected"), [("hit", [1, 0, 0, 0]), ("ndcg", [1, 1 / math.log2(3), 0, 0])])
@pytest.mark.parametrize("missing", [-torch.inf, torch.nan])
def test_a_target_that_is_not_ranked_has_no_reward(built, monkeypatch, reward, expected, missing):
    model, rows, _ = built
    batch = rows.train.inter_feat[torch.arange(4)]
    targets = torch.tensor([5, 6, 7, 8])
    batch["item_id"] = targets
    scores = torch.zeros(4, model.n_items)
    scores[torch.arange(4), targets] = torch.tensor([1.0, 0.5, -1.0, missing])
    scores[1, 9] = 1.0
    monkeypatch.setattr(model.backbone, "full_sort_predict", lambda _: scores)
    monkeypatch.setattr(model, "_settings", replace(model._settings, reward=reward, cost=0.0))
    assert model._rewards(batch, torch.ones(4, dtype=torch.long)).tolist() == pytest.approx(expected)


def test_actor_and_critic_do_not_move_the_backbone(built):
    model, rows, _ = built
    batch = rows.train.inter_feat[torch.arange(40)]
    model.zero_grad()
    model.epoch = 5
    draws = model._draws.get_state()
    model.calculate_loss(batch).backward()
    found = {name: one.grad.clone() for name, one in model.backbone.named_parameters() if one.grad is not None}
    assert all(one.grad is not None for one in model.policy.parameters())
    model._draws.set_state(draws)
    chosen = model._draw(model.policy(batch["item_id_list"], batch["item_length"])[0].detach().exp())
    model.zero_grad()
    model._backbone_loss(batch, chosen).backward()
    for name, one in model.backbone.named_parameters():
        if one.grad is not None:
            assert torch.allclose(found[name], one.grad, atol=1e-6), name
    model.epoch = 0
    model.zero_grad()
    model.calculate_loss(batch).backward()
    assert all(one.grad is None for one in model.policy.parameters())


def run(world, folder, model="SAR", **settings):
    with working_in(folder):
        ours = {key: value for key, value in SETTINGS.items() if model == "SAR" or not key.startswith("sar_")}
        where = {"data_path": str(world.parent), "checkpoint_dir": str(folder / "saved")}
        return recbole_llm.run(model, world.name, **where, **{**ours, **settings})


@pytest.mark.parametrize("n_users", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_users_are_learnt_by_heart(tmp_path, n_users):
    few = make_world(tmp_path / "data" / "few", n_users=n_users, n_items=40 if n_users > 10 else 10, seed=4)
    learning = {"train_batch_size": 64, "learning_rate": 0.01} if n_users > 10 else {"learning_rate": 0.03}
    one = run(few, tmp_path, epochs=45, eval_step=0, sar_lengths=[5, 10], **learning)
    rows = one._trained.rows.train.inter_feat
    last = {user: row for row, user in enumerate(rows["user_id"].tolist())}
    rows = rows[torch.tensor(list(last.values()))]
    best = one.model.full_sort_predict(rows)[:, 1:].argmax(dim=1) + 1
    assert (best == rows["item_id"]).float().mean() >= 0.9


def test_the_same_seed_gives_the_same_bits_and_the_folder_tells_of_lengths_and_is_asked_again(world, tmp_path):
    one, other = (run(world, tmp_path, epochs=3) for _ in range(2))
    states = [again.model.state_dict() for again in (one, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    found = json.loads((one.folder / "lengths.json").read_text())
    assert [point["length"] for point in found["points"]] == [None, 1, 2, 4, 10]
    assert found["points"][0]["value"] == one.valid_metrics["ndcg@10"]
    assert [point["shown"] for point in found["points"][1:]] == sorted(point["shown"] for point in found["points"][1:])
    assert found["points"][1]["shown"] == pytest.approx(1) and sum(found["chosen"].values()) == 50
    assert (one.folder / "lengths.png").is_file()
    again, here = asked_in_new_process(one, tmp_path, ["u1", "u9"], k=8)
    assert again == here


def test_one_length_is_the_backbone_on_histories_of_that_length(world, tmp_path):
    """The same weights rank the same rows; nothing is left to choose."""
    one = run(world, tmp_path, epochs=2, sar_lengths=[3], sar_gamma=0.0)
    rows = one._trained.rows.test.inter_feat
    shown = one.model._shown(rows, torch.full((len(rows),), 3))
    assert torch.equal(one.model.full_sort_predict(rows), one.model.backbone.full_sort_predict(shown))
    assert one.model.policy.allowed(rows["item_length"]).all()


def newest_two_world(folder, n_users=120, n_items=8, length=12, seed=0):
    """The next item is that of the last two in a table, nine times in ten; what came before says nothing."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, n_items, (n_items, n_items))
    folder.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(n_users):
        own = rng.integers(0, n_items, 2).tolist()
        while len(own) < length:
            follows = rng.random() < 0.9
            own.append(int(table[own[-2], own[-1]]) if follows else int(rng.integers(n_items)))
        lines += [f"u{user}\ti{item}\t{step}" for step, item in enumerate(own)]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_two_items_are_shown_where_only_the_last_two_matter(tmp_path):
    planted = newest_two_world(tmp_path / "data" / "newest")
    settings = {"epochs": 150, "learning_rate": 0.005, "sar_lengths": [1, 2, 5, 10], "sar_gamma": 0.0, "eval_step": 0}
    settings |= {"sar_warmup_epochs": 40, "sar_cost": 1.0, "hidden_size": 32, "train_batch_size": 256}
    one = run(planted, tmp_path, **settings)
    rows = one._trained.rows.test.inter_feat
    chances = one.model.policy(rows["item_id_list"], rows["item_length"])[0].exp()
    assert chances[:, 1].mean() > 0.9


def test_bad_settings_are_refused(world):
    for settings, key, kind in (
        ({"sar_backbone": "Caser"}, "sar_backbone", "value"),
        ({"sar_lengths": [0, 2]}, "sar_lengths", "value"),
        ({"sar_gamma": 1.5}, "sar_gamma", "value"),
        ({"sar_state_dim": 7}, "sar_state_dim", "value"),
        ({"sar_length": [2]}, "sar_length", "unknown"),
        ({"loss_type": "BPR"}, "loss_type", "conflict"),
    ):
        with refused(key, kind):
            Config("SAR", world.name, settings={**SETTINGS, **settings, "data_path": str(world.parent)})
