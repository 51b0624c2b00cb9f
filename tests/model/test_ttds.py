"""TTDS: codes of users, codes that follow the LLM, the losses beside it; and what is left of it without them: SemID."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import recbole_llm
from recbole_llm.model import twins
from recbole_llm.model.twins import TrainingInteractions, code_states
from recbole_llm.semantic_ids import collision_rate
from recbole_llm.settings.training import TeachingSettings
from recbole_llm.trainer import finetune
from recbole_llm.trainer.checkpoint import save_state
from recbole_llm.trainer.teaching import RankingStage
from tests.model.coded import coded_run, same_bits, weights_of
from tests.refusals import refused
from tests.rewards import check_rewards
from tests.runs import asked_in_new_process
from tests.worlds import make_world

QUICK = {"sid_epochs": 5, "refresh_steps": 5}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ttds")


@pytest.fixture(scope="module")
def go(root: Path, gaps: Path, llama: Path) -> Any:
    """``go(epochs=1)``: a run on the world with gaps; ``go("SemID")`` of another model."""

    def go(model: str = "TTDS", world: Path = gaps, **settings: Any) -> Any:
        return coded_run(model, world, root, llama, **{**QUICK, "sid_levels": 2, **settings})

    return go


@pytest.fixture(scope="module")
def run(go: Any) -> Any:
    return go()


def test_codes_of_items_and_users_are_left_and_told(run):
    with open(run.folder / "user_codes.csv", newline="", encoding="utf-8") as file:
        users = {line["user_id"]: line["code"] for line in csv.DictReader(file)}
    trained = {f"u{user}" for user in run.model.interactions.items_of}
    assert {name for name in users} <= {f"u{number}" for number in range(1, 13)} and len(users) == len(trained)
    assert all(code.startswith("[a_") and code.endswith("]") for code in users.values())
    told = json.loads((run.folder / "codes.json").read_text())
    assert told["users"]["items"] == len(users) and told["items"] == 19
    assert told["collision_rate"] == pytest.approx(collision_rate(run.model.code_table[:, :-1]))
    first, last = run.history
    assert 0 <= first["codes_changed"] <= 1 and 0 <= first["users_changed"] <= 1 and first["side_loss"] > 0
    assert "codes_changed" not in last  # the last epoch keeps the codes of the one before it


def test_prompts_name_the_user_by_training_rows_alone(run):
    model, rows = run.model, run._trained.rows
    later = {
        (int(user), int(item))
        for part in (rows.valid, rows.test)
        for user, item in zip(part.inter_feat[model.USER_ID], part.inter_feat[model.ITEM_ID], strict=True)
    }
    assert later and not any(
        (user, item) in later for user, items in model.interactions.items_of.items() for item in items
    )
    for example in model.examples(rows.test.inter_feat):
        assert len(example.user) == 2 and min(example.user) >= model.backbone.first_code + model._first_user


def test_a_user_without_training_rows_is_named_by_the_history(run):
    model, batch = run.model, run._trained.rows.test.inter_feat
    known = model.examples(batch)[0]
    strange = model._codes_of([known.history])[0]
    named = {name: batch[name] for name in batch.columns if name != model.USER_ID}
    (first, *_) = model.examples(type(batch)(named))
    assert first.user == model._tokens_of_user(strange) and first.history == known.history
    own, other = model.items[:2].tolist()  # and, as of a user with rows, every item counts once
    assert np.array_equal(model._means([[own, other, own]]), model._means([[own, other]]))


def test_a_row_is_scored_and_ranked_for_its_own_user(run, tmp_path):
    model, rows = run.model, run._trained.rows
    one = rows.test.inter_feat[torch.zeros(6, dtype=torch.long)]
    one[model.USER_ID] = torch.tensor([1, 2, 3, 3, 2, 1])
    full = model.full_sort_predict(one)
    assert len({tuple(scores) for scores in full.tolist()}) > 1
    for item in model.items[:4].tolist():
        one[model.ITEM_ID] = torch.full((6,), item)
        torch.testing.assert_close(model.predict(one), full[:, item].float())
    stage = RankingStage(model, {}, rows.train, TeachingSettings(rows=12, topk=4))
    stage.compute(tmp_path)
    ids, items = stage.load(tmp_path)
    order = {number: row for row, number in enumerate(rows.train.inter_feat["sample_id"].tolist())}
    chosen = rows.train.inter_feat[torch.tensor([order[number] for number in ids.tolist()])]
    np.testing.assert_array_equal(items, model.rank(chosen, 4).top_items)
    chosen[model.USER_ID] = torch.zeros_like(chosen[model.USER_ID])
    assert not np.array_equal(items, model.rank(chosen, 4).top_items)  # a row without its user has another list


def test_lengths_of_a_history_are_rewarded_in_prompts_that_name_the_user(run):
    check_rewards(run, 4)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.lists(st.integers(1, 6), max_size=5))))
def test_a_user_has_every_item_of_its_rows_once(rows):
    users, targets, histories = ([row[part] for row in rows] for part in range(3))
    found = TrainingInteractions.of(users, targets, range(len(rows)), histories, named=range(1, 7)).items_of
    shown = {user: [item for own, item, history in rows if own == user for item in (*history, item)] for user in users}
    assert {user: set(items) for user, items in found.items()} == {user: set(items) for user, items in shown.items()}
    assert all(items == sorted(set(items), key=shown[user].index) for user, items in found.items())


def test_a_users_first_item_is_taken_too_and_an_item_once_by_each():
    """Of users 1 (3, 5, 3, 4), 2 (5, 3, 6) and 3 (6, 3), the last not shown from the beginning."""
    users, targets, times = [1, 1, 1, 2, 2, 3], [5, 3, 4, 3, 6, 3], [2.0, 5.0, 7.0, 4.0, 8.0, 1.0]
    histories = [[3], [3, 5], [3, 5, 3], [5], [5, 3], [6, 6, 6, 6]]
    history_times = [[0.0], [0.0, 2.0], [0.0, 2.0, 5.0], [3.0], [3.0, 4.0], [0.5, 0.6, 0.7, 0.8]]
    rows = (users, targets, times, histories, {3, 5, 6})
    found = TrainingInteractions.of(*rows, longest=4, history_times=history_times)
    assert found.users_of == {3: [1, 3, 2], 5: [1, 2], 6: [2]} and found.searches == [(3, [1, 3, 2]), (5, [1, 2])]
    assert TrainingInteractions.of(*rows, longest=4).users_of[3] == [3, 1, 2]  # when user 1 began is not known
    assert TrainingInteractions.of(*rows).users_of == {3: [3, 2, 1], 5: [1], 6: [2]}
    again = TrainingInteractions.of([1, 1], [3, 3], [0.0, 1.0], [[4], [4, 3]], {3, 4}, longest=9)
    assert again.users_of == {4: [1], 3: [1]} and not again.searches


def test_all_that_a_user_took_before_its_first_row_is_taken():
    """Files that are split already may begin with several items; the history of a later row adds none."""
    rows = ([1, 2, 2], [9, 3, 6], [5.0, 3.0, 9.0], [[3, 4], [4], [4, 3, 5, 7]], {3, 4, 5, 9})
    found = TrainingInteractions.of(*rows, longest=50, history_times=[[1.0, 4.0], [2.0], [2.0, 3.0, 6.0, 7.0]])
    assert found.users_of == {3: [1, 2], 4: [2, 1], 9: [1]}
    assert TrainingInteractions.of(*rows, longest=50).users_of == {3: [2, 1], 4: [2, 1], 9: [1]}
    assert TrainingInteractions.of(*rows, longest=2).users_of == {3: [2], 4: [2], 9: [1]}


def test_texts_of_users_are_among_the_facts(run, monkeypatch):
    model = run.model
    assert "texts" not in model.facts()["users"]
    monkeypatch.setattr(model, "twin", replace(model.twin, user_text_fields=["gender"]))
    told = []
    for texts in (["", "F", ""], ["", "", "F"], ["", "F", ""]):
        monkeypatch.setitem(model.__dict__, "user_texts", twins.UserTexts(texts))
        told.append(model.facts())
    assert told[0] != told[1] and told[0] == told[2]


def test_that_states_are_contrasted_in_float32_is_a_fact_where_they_were_not(run, monkeypatch):
    model = run.model
    assert model.twin.con_weight and "contrasts" not in model.facts()
    monkeypatch.setitem(model.config.final_config_dict, "enable_amp", True)
    assert model.facts()["contrasts"] == "float32"
    monkeypatch.setattr(model, "twin", replace(model.twin, con_weight=0.0))
    assert "contrasts" not in model.facts()


def test_searches_ask_for_the_last_user_who_took_an_item(run):
    model = run.model
    more, searches = model.more_examples(), model.interactions.searches
    assert searches and len(more) == model.n_more_examples == 2 * len(model.items) + len(searches)
    rows = run._trained.rows.train.inter_feat
    names = ("timestamp", model.USER_ID, model.ITEM_ID, "timestamp_list", model.ITEM_SEQ)
    taken, begun = [], set()
    for time, user, target, times, history in sorted(zip(*(rows[name].tolist() for name in names), strict=True)):
        before = [] if user in begun else zip(times, history, strict=True)
        taken += [(time, user, target), *((own, user, item) for own, item in before if item)]
        begun.add(user)
    for (prompt, answer), (item, users) in zip(more[-len(searches) :], searches, strict=True):
        own = [user for _, user, other in sorted(taken) if other == item]
        assert list(dict.fromkeys(own))[-21:] == users
        codes = model._state.user_codes[users].numpy()
        assert answer == [*model._tokens_of_user(codes[-1]), model.backbone.eos_token_id]
        coded = [token for token in prompt if token >= model.backbone.first_code]
        assert coded == [*model.codes[item], *(token for code in codes[:-1] for token in model._tokens_of_user(code))]
    texts = [model.backbone.decode(part) for pair in more for part in pair]
    assert not any("{" in text or "}" in text for text in texts)


def test_searches_that_are_too_long_leave_out_the_earliest_users(run, monkeypatch):
    model = run.model
    n = len(model.interactions.searches)
    whole = [pair for pair in model.more_examples()[-n:]]
    limit = max(len(prompt) for prompt, _ in whole) - 1
    assert min(len(prompt) for prompt, _ in whole) <= limit
    monkeypatch.setattr(model.prompts, "max_prompt_tokens", limit)
    for (prompt, answer), (longer, same) in zip(model.more_examples()[-n:], whole, strict=True):
        assert answer == same and len(prompt) <= limit
        if len(longer) <= limit:
            assert prompt == longer
        else:
            named = [[token for token in ids if token >= model.backbone.first_code] for ids in (prompt, longer)]
            users, all_users = (ids[len(model.codes[1]) :] for ids in named)  # behind the item's code
            assert users and users == all_users[-len(users) :]


def test_repeated_items_leave_the_loss_beside_the_answers_as_it_is_and_only_the_llm_is_moved(run):
    model = run.model
    items = [int(item) for item in model.items[:3]]
    with torch.no_grad():
        once = model.side_loss([items], [0, 1])
        again = model.side_loss([items, [items[1], *items]], [0, 1, 1])
        texts = model._state.item_vectors[model._place[items]]
        states = code_states(model.llm, [model.codes[item] for item in items])
        single = model.items[:2].tolist()
        square = (
            (code_states(model.llm, [model.codes[item] for item in single]) - model._state.item_vectors[:2])
            .square()
            .mean()
        )
    cosines = torch.nn.functional.normalize(states, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T / 0.1
    targets = torch.arange(3)
    contrast = (
        torch.nn.functional.cross_entropy(cosines, targets) + torch.nn.functional.cross_entropy(cosines.T, targets)
    ) / 2
    torch.testing.assert_close(once, again)
    torch.testing.assert_close(once, contrast + square, atol=1e-4, rtol=1e-4)
    model.side_loss([items], [0]).backward()
    assert model.code_tokens.rows_in.grad.any()
    assert all(weight.grad is None for tower in model._towers.values() for weight in tower.parameters())
    model.zero_grad()


def test_new_codes_of_which_too_many_collide_are_not_taken(run, monkeypatch):
    model = run.model
    state = model.adapter.trainable_state(model.llm)
    before, tower = model.code_table.copy(), {k: v.clone() for k, v in model._towers["item_tower"].state_dict().items()}
    monkeypatch.setattr(twins, "MOST_COLLISIONS", -1.0)
    found = model.end_epoch(1, 2)
    assert found["codes_changed"] == found["users_changed"] == 0 and (model.code_table == before).all()
    assert all(torch.equal(tower[name], weight) for name, weight in model._towers["item_tower"].state_dict().items())
    assert model.end_epoch(2, 2) is None
    model.adapter.load_trainable_state(model.llm, state)


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(run, go, tmp_path, monkeypatch):
    def save_and_fail(folder: Path, state: Any) -> None:
        save_state(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_fail)
        go(saved=tmp_path / "saved")
    resumed = go(saved=tmp_path / "saved")
    assert same_bits(resumed, run) and resumed.ranks.equals(run.ranks)


def test_without_towers_refresh_and_losses_it_is_semid(go):
    options = {"sid_quantizer": "rqvae", "sid_tasks": ["next", "item2text"], "epochs": 1}
    off = {"refresh_every": 0, "user_tower": False, "con_weight": 0.0, "rec_weight": 0.0}
    one, other = go("TTDS", **options, **off), go("SemID", **options)
    assert same_bits(one, other) and one.ranks.equals(other.ranks) and one.history[0]["train_loss"] > 0


def test_a_loaded_run_has_the_same_codes_and_lists(run, go):
    again = recbole_llm.load_run(run.folder)
    kept = weights_of(run)
    assert (again.model.code_table == run.model.code_table).all()
    assert torch.equal(again.model._state.user_codes, kept["twins.user_codes"])
    for asked in ({"users": ["u1", "u2"]}, {"histories": [["i1", "i2"], ["i4"]]}):
        assert again.recommend(**asked, k=5).equals(run.recommend(**asked, k=5))
    titles = [run.model.catalog.titles[item] for item in (1, 2)]
    tokens = [run.model.catalog.tokens[item] for item in (1, 2)]
    assert run.recommend([titles], k=5).equals(run.recommend([tokens], k=5))


SECOND = {"fixed_epochs": 2, "fixed_learning_rate": 0.01}


def test_a_second_tuning_keeps_the_codes_of_the_first(run, go):
    """The first tuning is the run's own: what comes later is not in its fingerprint."""
    second = go(**SECOND)
    stages = second.model.stages
    first = stages.root / stages.used["fine-tune"] / "adapter"
    assert stages.used["fine-tune"] == run.model.stages.used["fine-tune"]
    facts = json.loads((stages.root / stages.used["fine-tune-fixed"] / "stage.json").read_text())["facts"]
    assert facts["from"] == stages.used["fine-tune"] and facts["settings"]["epochs"] == 2
    kept, before = weights_of(second), load_file(first / "code_tokens.safetensors")
    assert torch.equal(kept["code_tokens.codes"], before["codes"])
    assert not torch.equal(kept["code_tokens.rows_in"], before["rows_in"])
    assert [set(record) & {"codes_changed", "side_loss"} for record in second.history] == [set(), set()]
    assert second.history[0]["learning_rate"] == pytest.approx(0.01)
    assert recbole_llm.load_run(second.folder).recommend(users=["u1"], k=5).equals(second.recommend(users=["u1"], k=5))


@pytest.mark.slow
def test_a_second_tuning_goes_on_where_it_was_killed(go, tmp_path, monkeypatch):
    def save_and_fail(folder: Path, state: Any) -> None:
        save_state(folder, state)
        if folder.parent.name.startswith("fine-tune-fixed"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_fail)
        go(saved=tmp_path / "saved", **SECOND)
    whole, resumed = go(**SECOND), go(saved=tmp_path / "saved", **SECOND)
    assert same_bits(resumed, whole) and resumed.ranks.equals(whole.ranks)


@pytest.mark.slow
def test_users_are_named_by_their_texts_where_they_have_some(go, run):
    named = go(user_text_fields=["gender", "occupation"], sid_sinkhorn=0.003)
    model = named.model
    texts, vectors = model.user_texts.texts, model._state.user_texts.numpy()
    assert {text.split()[0] for text in texts[1:]} == {"F", "M"} and texts[0] == "" and not vectors[0].any()
    users = sorted(model.interactions.items_of)
    assert np.array_equal(model._user_vectors(users), vectors[users])
    same = [(one, other) for one in users for other in users if one < other and texts[one] == texts[other]]
    codes = model._state.user_codes.numpy()
    assert same and all((codes[one] == codes[other]).all() for one, other in same)
    assert "user-vectors" in model.stages.used and "user-vectors" not in run.model.stages.used
    with refused("user_text_fields", "data", "no user has text"):
        twins.UserTexts(["", ""])
    again = recbole_llm.load_run(named.folder)
    assert torch.equal(again.model._state.user_codes, model._state.user_codes)
    assert again.recommend(users=["u1", "u2"], k=5).equals(named.recommend(users=["u1", "u2"], k=5))


@pytest.mark.slow
def test_a_new_process_gives_the_same_items(run, root):
    again, here = asked_in_new_process(run, root, ["u1", "u2", "u3"], k=5)
    assert again == here


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"train_unit": "user", "train_sample_size": None}, {"adapter": "full", "sid_assign": "sample"}],
    ids=["trunks", "full"],
)
def test_other_settings_run(go, settings):
    assert np.isfinite(go(epochs=2, **settings).metrics["ndcg@5"])


@pytest.mark.slow
def test_fifty_users_are_learned_by_heart(go, tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("data") / "fifty", n_users=50, n_items=40)
    options = {"sid_codes": 8, "sid_tasks": ["next"], "epochs": 60, "eval_step": 0, "train_sample_size": 50}
    run = go(world=world, **options, lora_r=16, refresh_every=30, con_weight=0.1, rec_weight=0.1)
    ranking = run.model.rank(run._trained.rows.train.inter_feat, 5)
    assert len(ranking) == 50 and (ranking.ranks == 0).mean() >= 0.9
