"""Laser: stages, what is ranked by, what a run leaves and gives back, that it goes on where it was killed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM

import recbole_llm
from recbole_llm.model.laser import Laser
from recbole_llm.prompt import Example
from recbole_llm.trainer import finetune
from recbole_llm.trainer.checkpoint import save_state
from recbole_llm.trainer.laser_trainer import RefreshedItemsStage
from recbole_llm.trainer.tuning import Tuning
from recbole_llm.trainer.tuning_stages import FineTuneStage
from tests.processes import forked_python
from tests.runs import working_in
from tests.worlds import make_world

# A prompt that is the history alone costs a fifth of the time.
WORDING = """
item: movie
items: movies
verb: watched
summary_preamble: ""
summary_instruction: ""
summary_input: "{history}"
"""
STAGES = ("bi-tuning", "bi-tuning-fixed")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("laser")
    (folder / "short.yaml").write_text(WORDING)
    return folder


@pytest.fixture(scope="module")
def go(root: Path, gaps: Path, llama: Path) -> Any:
    """``go(epochs=1)``: a run on the world with gaps; with the stages of this module unless ``saved`` is given."""

    def go(world: Path = gaps, saved: Path | None = None, **settings: Any) -> Any:
        usual = {
            "llm_path": str(llama),
            "domain": str(root / "short.yaml"),
            "prompt_style": "plain",
            "item_text_fields": ["class"],
            "laser_prefix_len": 2,
            "laser_experts": 2,
            "laser_width": 16,
            "laser_fixed_epochs": 2,
            "epochs": 2,
            "stopping_step": 0,
            "train_batch_size": 16,
            "train_sample_size": 24,
            "topk": [1, 5],
            "valid_metric": "NDCG@5",
            "show_progress": False,
            "state": "ERROR",
            "recommender_config": {"epochs": 2, "train_batch_size": 64},
            "data_path": str(world.parent),
            "checkpoint_dir": str(saved or root / "saved"),
        }
        with working_in(root):
            return recbole_llm.run("Laser", world.name, **{**usual, **settings})

    return go


@pytest.fixture(scope="module")
def run(go: Any) -> Any:
    return go()


def learned(folder: Path) -> dict[str, torch.Tensor]:
    files = ("bi_tuning", "items")
    return {name: value for file in files for name, value in load_file(folder / f"{file}.safetensors").items()}


def stage_folder(run: Any, stage: str) -> Path:
    return run.folder.parent / "stages" / run.model.stages.used[stage] / "adapter"


def test_two_stages_of_which_the_second_keeps_the_item_vectors(run, llama):
    first, second = (learned(stage_folder(run, stage)) for stage in STAGES)
    assert torch.equal(first["vectors"], second["vectors"]) and first["vectors"].any()
    assert all(not torch.equal(first[name], second[name]) for name in ("suffix", "mformer.experts"))
    assert len(run.history) == 2
    for record in run.history:
        assert sum(record["expert_usage"]) == pytest.approx(1) and 1 - 1e-6 <= record["balance_loss"] <= 2
    items = second["vectors"][torch.from_numpy(run.model.catalog.has_title)]
    assert run.history[-1]["item_cosine"] == pytest.approx(float((items @ items.T).mean()), abs=1e-5)
    kept = learned(run.folder / "adapter")
    assert all(torch.equal(kept[name], second[name]) for name in second)
    untuned = AutoModelForCausalLM.from_pretrained(llama).state_dict()
    assert all(torch.equal(value, untuned[name]) for name, value in run.model.llm.state_dict().items())
    assert (run.folder / "stage_table.md").read_text().count("| Laser after") == 4


def test_after_the_first_stage_an_item_is_a_history_of_that_item(go):
    model = go(laser_fixed_epochs=0, eval_step=0).model
    for item in model.titled.tolist()[:4]:
        vector = model.vectors([(model.prompts.prompt(Example([item], 0)), (item,))])[0]
        assert vector == pytest.approx(model.item_embeddings[item], abs=1e-5)
    before = model.item_embeddings.copy()
    model.refresh_items()
    assert np.allclose(before, model.item_embeddings, atol=1e-5)


def test_prompts_number_items_and_say_what_is_known_of_them(run):
    first, second = run.model.titled[:2].tolist()
    catalog = run.model.catalog
    lines = run.model.prompts.text(Example([second, first], 0)).strip().splitlines()
    for number, (line, item) in enumerate(zip(lines, (second, first), strict=True), start=1):
        assert line == f"{number}. {', '.join([catalog.titles[item], *catalog.attributes[item]])}"


def test_the_ranking_is_that_of_cosines(run):
    model, rows = run.model, run._trained.rows.test.inter_feat
    histories = model.histories(rows)
    users = [(model.prompts.prompt(Example(history, 0)), tuple(history)) for history in histories]
    items = model.item_embeddings.astype(np.float64)
    cosines = model.vectors(users).astype(np.float64) @ items.T
    cosines[:, ~model.catalog.has_title] = -np.inf
    ranking = model.rank(rows, 5)
    targets = rows[model.ITEM_ID].numpy()
    own = cosines[np.arange(len(rows)), targets]
    expected = (cosines > own[:, None] + 1e-9).sum(axis=1)
    assert (ranking.ranks == np.where(model.catalog.has_title[targets], expected, -1)).mean() > 0.9
    for row, listed in enumerate(ranking.top_items):
        assert cosines[row, listed] == pytest.approx(np.sort(cosines[row])[::-1][:5], abs=1e-5)
    scores = model.full_sort_predict(rows)
    assert torch.isinf(scores[:, ~torch.from_numpy(model.catalog.has_title)]).all()
    assert (scores.argmax(dim=1).numpy() == ranking.top_items[:, 0]).all()


def test_items_and_users_are_encoded_in_the_numbers_of_training(run, monkeypatch):
    """With enable_amp bfloat16, as each pass of training is."""
    model, item = run.model, int(run.model.titled[0])
    prompt, exact = model.prompts.prompt(Example([item], 0)), run.model.item_embeddings[item].copy()
    monkeypatch.setitem(model.config.final_config_dict, "enable_amp", True)
    with torch.no_grad(), model.autocast():
        expected = normalize(model.encode([prompt], model.item_states([[item]])), dim=1)[0].numpy()
    found = model.vectors([(prompt, (item,))])[0]
    assert np.allclose(found, expected, atol=1e-6) and not np.allclose(found, exact, atol=1e-5)


def test_that_experts_are_chosen_in_float32_is_a_fact_where_they_were_not(run, monkeypatch):
    monkeypatch.setattr(FineTuneStage, "facts", lambda self: {})
    stage = RefreshedItemsStage(cast(Tuning, SimpleNamespace(model=run.model, config=run.model.config)))
    before = stage.facts()
    monkeypatch.setitem(run.model.config.final_config_dict, "enable_amp", True)
    assert stage.facts() == before | {"router": "float32"}


def test_items_of_one_title_have_vectors_of_their_own(run):
    catalog = run.model.catalog
    (followers,) = np.nonzero(catalog.has_title & ~catalog.rankable)
    assert len(followers) == 2
    for item in followers.tolist():
        other = int(catalog.representative[item])
        assert not np.allclose(run.model.item_embeddings[item], run.model.item_embeddings[other])


def test_a_new_process_recommends_the_same(run):
    asked = run.recommend(users=run.users[:3], k=4)[["user_id", "item_id"]].to_csv(index=False)
    new = run.recommend([["i1", "i2"], ["The Twins"]], k=3)["item_id"].tolist()
    printed = forked_python(
        """
        import sys
        import recbole_llm
        run = recbole_llm.load_run(sys.argv[1])
        print(run.recommend(users=run.users[:3], k=4)[["user_id", "item_id"]].to_csv(index=False))
        print(run.recommend([["i1", "i2"], ["The Twins"]], k=3)["item_id"].tolist())
        """,
        run.folder,
        cwd=run.folder.parent.parent,
    ).stdout
    assert asked.strip() in printed and str(new) in printed


@pytest.mark.parametrize("stage", [pytest.param(STAGES[0], marks=pytest.mark.slow), STAGES[1]])
def test_a_killed_run_ends_with_the_same_bits(run, go, tmp_path, monkeypatch, stage):
    def save_and_fail(folder: Path, state: Any) -> None:
        save_state(folder, state)
        if (
            folder.parent.name.startswith(f"{stage}-")
            and state.epoch == 1
            and not folder.parent.name.startswith(f"{stage}-fixed")
        ):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_fail)
        go(saved=tmp_path / "saved")
    again = go(saved=tmp_path / "saved")
    mine, theirs = (learned(one.folder / "adapter") for one in (again, run))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert again.ranks.equals(run.ranks)


def test_approximate_indexes_and_other_recommenders_work(go):
    short = {"epochs": 1, "laser_fixed_epochs": 0, "laser_router_scale": True, "beyond_accuracy": True}
    other = go(faiss_index="HNSW8", recommender="BERT4Rec", **short)
    assert other.model.index.exact is False and np.isfinite(other.metrics["ndcg@5"])


@pytest.mark.slow
def test_fifty_users_are_learnt_by_heart(go, tmp_path_factory):
    """With item vectors that stay: those that follow the weights come nearer to each other in so small an LLM."""
    world = make_world(tmp_path_factory.mktemp("data") / "fifty", n_users=50, n_items=40)
    settings = {"epochs": 1, "laser_fixed_epochs": 220, "eval_step": 0, "learning_rate": 0.0015}
    sizes = {"laser_width": 64, "laser_prefix_len": 8, "MAX_ITEM_LIST_LENGTH": 5, "item_text_fields": []}
    rows = {"train_sample_size": 50, "train_batch_size": 50}
    known = {"recommender_config": {"epochs": 20, "train_batch_size": 64}}
    run = go(world, **settings, **sizes, **rows, **known)
    ranking = run.model.rank(run._trained.rows.train.inter_feat, 5)
    assert len(ranking) == 50 and (ranking.ranks == 0).mean() >= 0.9


def groups_world(folder: Path, n_groups: int = 2, n_users: int = 120, per_group: int = 12, seed: int = 0) -> Path:
    """Users of groups that have nothing in common; what one likes next is drawn from the items of its group."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines, items = ["user_id:token\titem_id:token\ttimestamp:float"], ["item_id:token\tmovie_title:token_seq"]
    for user in range(n_users):
        chosen = rng.permutation(per_group)[:8] + (user % n_groups) * per_group
        lines += [f"u{user}\ti{item}\t{time}" for time, item in enumerate(chosen.tolist())]
    items += [f"i{item}\tMovie {item}" for item in range(n_groups * per_group)]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")
    (folder / f"{folder.name}.item").write_text("\n".join(items) + "\n")
    return folder


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Routers begin where every item votes for the first expert."""
    make = Laser._make_adapter

    def make_crowded(self: Laser) -> Any:
        adapter, states = make(self), torch.cat(self.item_states([[item] for item in self.titled.tolist()]))
        mean = states.mean(dim=0)
        self.bi_tuning.mformer.router.data = torch.stack([0.5 * mean / mean.norm(), torch.zeros_like(mean)])
        return adapter

    monkeypatch.setattr(Laser, "_make_adapter", make_crowded)


@pytest.mark.slow
def test_experts_specialise_where_groups_differ(go, tmp_path_factory, crowded):
    """All users begin with one expert; the balance alone teaches the router, which ends telling the groups apart."""
    world = groups_world(tmp_path_factory.mktemp("data") / "groups")
    settings = {"epochs": 6, "laser_fixed_epochs": 0, "eval_step": 0, "train_sample_size": 200, "item_text_fields": []}
    data = {"title_field": "movie_title", "recommender_config": {"epochs": 30, "train_batch_size": 64}}
    for balance, agrees in ((0.0, False), (0.01, True)):
        run = go(world, learning_rate=0.01, laser_balance=balance, **settings, **data)
        model, rows = run.model, run._trained.rows.test.inter_feat
        tokens = run._trained.rows.whole.field2id_token["user_id"]
        groups = np.array([int(tokens[user][1:]) % 2 for user in rows["user_id"].tolist()])
        experts = np.array(model.bi_tuning.mformer.chosen(model.item_states(model.histories(rows))))
        agreement = (experts == groups).mean()
        assert max(agreement, 1 - agreement) == 0.5 if not agrees else max(agreement, 1 - agreement) > 0.95
