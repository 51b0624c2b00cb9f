"""SemID: what a run leaves and gives back, that it goes on where it was killed, and that its rankings are exact."""

from __future__ import annotations

import csv
import json
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import recbole_llm
from recbole_llm.grounding.likelihood import LikelihoodGrounding
from recbole_llm.llm.parts import input_embedding
from recbole_llm.model.semid import SemID
from recbole_llm.semantic_ids import residual_quantise
from recbole_llm.semantic_ids.table import standardised
from recbole_llm.trainer import finetune
from recbole_llm.trainer.checkpoint import save_state
from tests.model.coded import coded_run, same_bits, weights_of
from tests.refusals import refused
from tests.runs import asked_in_new_process
from tests.worlds import make_world, ring_world

TASKS = ["next", "item2text", "text2item"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("semid")


@pytest.fixture(scope="module")
def go(root: Path, gaps: Path, llama: Path) -> Any:
    """``go(epochs=1)``: a run on the world with gaps."""

    def go(world: Path = gaps, **settings: Any) -> Any:
        return coded_run("SemID", world, root, llama, **{"sid_tasks": TASKS, **settings})

    return go


@pytest.fixture(scope="module")
def run(go: Any) -> Any:
    return go()


def test_titles_of_items_are_cut_where_the_llm_has_no_positions(run, monkeypatch):
    whole = run.model.more_examples()
    positions = max(len(prompt) for prompt, _ in whole) + 2
    monkeypatch.setattr(run.model.backbone.model.config, "max_position_embeddings", positions)
    cut = run.model.more_examples()
    assert [prompt for prompt, _ in cut] == [prompt for prompt, _ in whole] and cut != whole
    assert max(len(prompt + answer) - 1 for prompt, answer in cut) == positions
    assert [answer[-1] for _, answer in cut] == [answer[-1] for _, answer in whole]


def test_lists_are_made_diverse_by_the_titles_of_their_items(go):
    run = go(rerank="mmr", rerank_lambda=0.1, rerank_topn=15)
    vectors = np.load(run.folder / "rerank.npz")["vectors"]
    assert np.array_equal(vectors, run.model.title_states) and len(np.unique(vectors, axis=0)) > 2
    lists = [(one.folder / "test_ranks.csv").read_text(encoding="utf-8") for one in (run, go())]
    assert lists[0] != lists[1]


def test_every_titled_item_has_a_code_of_its_own_also_where_titles_are_shared(run):
    with open(run.folder / "codes.csv", newline="", encoding="utf-8") as file:
        codes = {line["item_id"]: line["code"] for line in csv.DictReader(file)}
    assert len(codes) == len(set(codes.values())) == 19 and "i3" not in codes  # i5, i8 and i9 share a title
    without_counter = [codes[item].rpartition("<c_")[0] for item in ("i5", "i8", "i9")]
    assert len(set(without_counter)) == 1  # one text, one vector
    told = json.loads((run.folder / "codes.json").read_text())
    bare = {code.rpartition("<c_")[0] for code in codes.values()}
    assert told["collision_rate"] == pytest.approx((19 - len(bare)) / 19) and told["items"] == 19
    assert told["used"][0] == len({code.partition(">")[0] for code in codes.values()}) <= told["codes"] == 4
    with Image.open(run.folder / "codes.png") as image:
        assert image.format == "PNG"


def test_the_folder_holds_the_rows_of_the_tokens_and_none_of_the_llm(run):
    weights, model = weights_of(run), run.model
    own = {name: weight for name, weight in weights.items() if name.startswith("code_tokens.")}
    assert set(own) == {"code_tokens.codes", "code_tokens.rows_in", "code_tokens.rows_out"}
    assert all("lora" in name for name in weights if name not in own)
    assert len(own["code_tokens.rows_in"]) == len(model.backbone.code_names) < model.backbone.first_code
    assert input_embedding(model.llm).num_embeddings == model.backbone.first_code


@pytest.mark.slow
def test_a_new_process_gives_the_same_items(run, root):
    again, here = asked_in_new_process(run, root, ["u1", "u2", "u3"], k=5)
    assert again == here


def test_a_history_reads_the_same_by_ids_and_by_titles(run):
    titles = run.model.catalog.titles
    tokens = run.model.catalog.tokens
    items = [item for item in (1, 2, 6) if titles[item]]
    by_id = run.recommend([[tokens[item] for item in items]], k=5)
    by_title = run.recommend([[titles[item] for item in items]], k=5)
    assert len(by_id) == 5 and by_id.equals(by_title) and "i3" not in set(by_id["item_id"])


def test_an_interrupted_run_ends_with_the_same_bits_and_so_does_a_second_one(run, go, tmp_path, monkeypatch):
    def save_and_fail(folder: Path, state: Any) -> None:
        save_state(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_fail)
        go(saved=tmp_path / "saved")
    resumed = go(saved=tmp_path / "saved")
    assert same_bits(resumed, run) and resumed.ranks.equals(run.ranks)
    assert any(stage.startswith("fine-tune") for stage in resumed.model.stages.reused)


def test_the_codes_that_lie_with_the_weights_are_those_of_the_items(run):
    """Loading another table changes prompts, answers and rankings at once."""
    model = run.model
    state = model.adapter.trainable_state(model.llm)
    turned = state["code_tokens.codes"].clone()
    one, other = model.items[:2].tolist()
    turned[[one, other]] = turned[[other, one]]
    before = list(model.codes[one])
    model.adapter.load_trainable_state(model.llm, {**state, "code_tokens.codes": turned})
    assert model.codes[other] == before and model.response(other)[:-1] == before
    assert model.grounding.trie.items(before) == [other]
    for wrong in (turned[one].clone(), turned[one] + 10_000):  # another item's, or of no vocabulary
        turned[other] = wrong
        with refused("", "file", "not one for each item"):
            model.adapter.load_trainable_state(model.llm, {**state, "code_tokens.codes": turned})
    model.adapter.load_trainable_state(model.llm, state)
    assert model.codes[one] == before and model.grounding.trie.items(before) == [one]


@torch.no_grad()
def brute_force(model: Any, prompt: list[int], item: int) -> float:
    """Log-probability of an item's code by one plain pass."""
    answer = model.response(item)
    logits = model.llm(torch.tensor([[*prompt, *answer]])).logits[0, -len(answer) - 1 : -1].double()
    return float(logits.log_softmax(dim=1)[torch.arange(len(answer)), torch.tensor(answer)].sum())


def test_all_scores_are_those_of_plain_passes_and_beams_are_their_head(run):
    model, settings = run.model, run.config.final_config_dict
    batch = run._trained.rows.test.inter_feat[:3]
    rows = model.rows(batch)
    exact = LikelihoodGrounding(model, settings).scores(rows)
    for row, prompt in enumerate(rows.prompts):
        found = [brute_force(model, prompt, item) for item in model.items]
        np.testing.assert_allclose(exact[row, model.items], found, atol=1e-3)
        others = np.setdiff1d(np.arange(model.catalog.n_items), model.items)
        assert (exact[row, others] == -np.inf).all()
    wide = type(model.grounding)(model, {**settings, "num_beams": len(model.items)})
    beams = wide.scores(rows)
    torch.testing.assert_close(beams, exact, atol=1e-3, rtol=1e-4)
    ranking = model.rank(batch, 5)
    assert np.isin(ranking.top_items, model.items).all()
    np.testing.assert_allclose(ranking.top_scores, exact.gather(1, torch.from_numpy(ranking.top_items)), atol=1e-3)


def test_a_run_that_mixes_in_another_recommender_asks_for_the_rows_that_it_was_trained_on(run):
    mixed = copy(run.config)
    mixed.final_config_dict = {**run.config.final_config_dict, "lm_weight": 0.5}
    assert not SemID.borrows(run.config) and SemID.borrows(mixed)


def test_answers_are_codes_of_items(run):
    batch = run._trained.rows.test.inter_feat[:2]
    known = {run.model.backbone.decode(run.model.codes[item]) for item in run.model.items}
    for best, beams in zip(run.model.generate_text(batch), run.model.generate_beams(batch), strict=True):
        assert beams[0] == best and set(beams) <= known and len(set(beams)) == len(beams) == 8


def test_no_prompt_depends_on_the_target_and_no_brace_is_left(run):
    model, batch = run.model, run._trained.rows.train.inter_feat
    texts = [model.backbone.decode(prompt) for pair in model.token_pairs(batch) if pair for prompt in pair]
    texts += [model.backbone.decode(part) for pair in model.more_examples() for part in pair]
    assert len(model.more_examples()) == model.n_more_examples == 2 * len(model.items)
    assert not any("{" in text or "}" in text for text in texts)


@pytest.mark.parametrize(
    "settings",
    [
        {"sid_quantizer": "rqvae", "sid_epochs": 3, "sid_tasks": ["next"], "grounding": "likelihood"},
        {"sid_source": "id", "recommender_config": {"epochs": 1}, "lm_weight": 0.5, "adapter": "full"},
        {"sid_source": "llmemb", "scft_steps": 3, "scft_batch": 8, "item_text_fields": ["class"], "epochs": 1},
        {"train_unit": "user", "train_sample_size": None, "epochs": 1},
        {"adapter": "ilora", "sid_tasks": ["next"], "recommender_config": {"epochs": 1}, "epochs": 1},
        {"epochs": 0},
    ],
    ids=["rqvae", "id", "llmemb", "trunks", "ilora", "untuned"],
)
@pytest.mark.slow
def test_other_settings_run_and_come_back(go, settings):
    run = go(**settings)
    again = recbole_llm.load_run(run.folder)
    assert again.recommend(users=["u1", "u4"], k=5).equals(run.recommend(users=["u1", "u4"], k=5))
    assert np.isfinite(run.metrics["ndcg@5"])


def test_codes_can_be_made_of_the_vectors_of_an_llm_tuned_on_items(go):
    """As LLMEmb's stages give them: another tuning gives other vectors, and the run's own LLM is not the tuned one."""
    options = {"sid_source": "llmemb", "scft_batch": 8, "pca_dim": 4, "epochs": 0}
    run, again = (go(**options, scft_steps=steps) for steps in (2, 0))
    vectors, untuned = (
        np.load(one.model.stages.root / one.model.stages.used["item-vectors"] / "vectors.npy") for one in (run, again)
    )
    assert vectors.shape == (run.model.catalog.n_items, 4) and not np.allclose(vectors, untuned)
    points = standardised(vectors[run.model.items])
    codes = residual_quantise(torch.from_numpy(points), torch.from_numpy(run.model.item_codes.codebooks))[0]
    assert (run.model.code_table[:, :-1] == codes.numpy()).all()
    assert "contrastive-tuning" in run.model.stages.used and "contrastive-tuning" not in again.model.stages.used
    assert run.model.backbone.fingerprint == again.model.backbone.fingerprint


@pytest.mark.slow
def test_rows_of_a_user_together_have_the_loss_of_rows_apart(go):
    options = {"train_sample_size": None, "epochs": 1, "eval_step": 0}
    apart, together = (go(train_unit=unit, trunk_overlap=1.0, **options) for unit in ("row", "user"))
    assert together.history[0]["train_loss"] == pytest.approx(apart.history[0]["train_loss"], rel=0.15)
    pairs = [pair for pair in together.model.token_pairs(together._trained.rows.train.inter_feat) if pair][:6]
    prompts, answers = [prompt for prompt, _ in pairs], [[answer] for _, answer in pairs]
    model = together.model
    one = model.trunk_loss([list(range(len(pairs)))], prompts, answers)
    torch.testing.assert_close(one, model.answer_loss(prompts, answers), atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_fifty_users_are_learned_by_heart(go, root, tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("data") / "fifty", n_users=50, n_items=40)
    run = go(world, sid_tasks=["next"], sid_codes=8, epochs=60, eval_step=0, train_sample_size=50, lora_r=16)
    ranking = run.model.rank(run._trained.rows.train.inter_feat, 5)
    assert len(ranking) == 50 and (ranking.ranks == 0).mean() >= 0.9


@pytest.mark.slow
def test_codes_do_no_worse_than_titles_where_titles_say_nothing(root, llama, tmp_path_factory):
    """Titles are numbers by chance; codes are made of what a recommender learned of the items."""
    world = ring_world(tmp_path_factory.mktemp("data") / "numbers", n_users=150, n_kinds=8, per_kind=5)
    options = {"train_sample_size": 300, "epochs": 8, "lora_r": 16, "grounding": "likelihood", "eval_step": 0}
    options |= {"metrics": ["Hit"], "valid_metric": "Hit@5", "test_sample_size": 100}
    teacher = {"recommender_config": {"epochs": 30, "learning_rate": 0.005, "train_batch_size": 128}}
    coded = coded_run("SemID", world, root, llama, sid_source="id", sid_codes=8, **options, **teacher)
    titled = coded_run("BIGRec", world, root, llama, **options)
    found = coded.metrics["hit@5"], titled.metrics["hit@5"]
    assert found[0] >= found[1] and found[0] > 3 * 5 / 40, found
