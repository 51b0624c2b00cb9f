"""SOLID as a model: what its options do to gradients, that it learns, and what a run keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recbole_llm
from recbole_llm.classic.kept_vectors import write_item_vectors
from recbole_llm.data.loaders import train_loader
from recbole_llm.data.rows import load_rows
from recbole_llm.llm.text_encoders import find_text_encoder, load_text_encoder
from recbole_llm.model.solid import SOLID
from recbole_llm.model.solid_codebook import train_classes
from recbole_llm.semantic_ids.heads import classes_of_vectors
from recbole_llm.settings.config import Config
from recbole_llm.stages import stage_seed
from tests.encoders import save_encoder
from tests.refusals import refused
from tests.runs import asked_in_new_process, working_in
from tests.worlds import make_world, ring_world

SIZES = {"hidden_size": 16, "embedding_size": 16, "inner_size": 32, "n_layers": 1, "n_heads": 2, "semantic_epochs": 2}
CALM = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}
SETTINGS = {**SIZES, **CALM, "topk": [1, 10], "metrics": ["NDCG", "Hit"], "valid_metric": "NDCG@10"}
SETTINGS |= {"show_progress": False, "category_field": "class", "semantic_source": "field", "n_semantic": 12}

OURS = ("semantic_epochs", "n_semantic", "embedding_size", "semantic_source", "dropout_prob")  # SASRec has no such keys


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("data") / "solid", n_users=50, n_items=60, seed=3)


def built(world, folder, **settings):
    """A model with its classes and codebook, and a batch of its rows."""
    where = {"data_path": str(world.parent), "checkpoint_dir": str(folder)}
    config = Config("SOLID", world.name, settings={**SETTINGS, **where, **settings})
    rows = load_rows(config, few_shot=False)
    torch.manual_seed(0)
    model = SOLID(config, rows.train)
    model.learn_codebook(config, rows.train, rows.valid)
    return model, next(iter(train_loader(config, rows)))


@pytest.mark.parametrize("backbone", ["SASRec", "GRU4Rec", "BERT4Rec"])
def test_every_weight_learns_but_the_codebook(world, tmp_path_factory, backbone):
    model, batch = built(world, tmp_path_factory.getbasetemp() / "solid", solid_backbone=backbone)
    model.calculate_loss(batch).backward()
    still = {name for name, one in model.named_parameters() if one.grad is None or not one.grad.abs().max() > 0}
    spare = {name for name in still if "output_bias" in name}  # of BERT4Rec's own scores
    assert still - spare == {"codebook"}
    assert model.codebook[: int(model.n_used)].abs().min(dim=0).values.max() > 0


def test_the_codebook_learns_by_choice_and_from_the_distance_alone(world, tmp_path):
    model, batch = built(world, tmp_path, codebook_trainable=True)
    model.calculate_loss(batch).backward()
    assert model.codebook.grad.abs().max() > 0
    model, batch = built(world, tmp_path, codebook_trainable=True, codebook_weight=0.0)
    model.calculate_loss(batch).backward()
    assert not model.codebook.grad.any()


def test_item_vectors_learn_through_the_snap_by_straight_through_alone(world, tmp_path):
    """The layer before the snap has no other way to the loss."""
    for straight, learns in ((True, True), (False, False)):
        model, batch = built(world, tmp_path, straight_through=straight)
        model.calculate_loss(batch).backward()
        gradient = model.item_vectors.layer.weight.grad
        assert (gradient is not None and bool(gradient.abs().max() > 0)) is learns


def test_without_the_items_branch_scores_go_by_states_and_classes(world, tmp_path):
    """Another codebook changes what items say and nothing else."""
    for clip, same in ((0.0, True), (0.5, False)):
        model, batch = built(world, tmp_path, hyper_clip=clip)
        before = model.eval().full_sort_predict(batch)
        model.codebook.data = model.codebook.data.flip(0) * 5 + 1
        model.n_used.fill_(len(model.codebook))
        model.item_condition.layers[2].bias.data += 100
        assert torch.equal(before, model.full_sort_predict(batch)) is same


def test_pairs_have_the_scores_of_the_table(world, tmp_path):
    model, batch = built(world, tmp_path)
    table = model.eval().full_sort_predict(batch)
    found = model.predict(batch)
    assert found.tolist() == pytest.approx(table.gather(1, batch["item_id"][:, None])[:, 0].tolist(), abs=1e-5)


def model_tokens(world):
    """Outside ids of the items in the model's order, the padding's first."""
    config = Config("SOLID", world.name, settings={**SETTINGS, "data_path": str(world.parent)})
    rows = load_rows(config, few_shot=False)
    return [str(token) for token in rows.whole.field2id_token["item_id"]]


def run(world, folder, model="SOLID", **settings):
    with working_in(folder):
        where = {"data_path": str(world.parent), "checkpoint_dir": str(folder / "saved")}
        chosen = {key: value for key, value in {**SETTINGS, **settings}.items() if model == "SOLID" or key not in OURS}
        return recbole_llm.run(model, world.name, **where, **chosen)


@pytest.mark.parametrize("n_users", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_users_are_learnt_by_heart(tmp_path, n_users):
    """What is asked of the finished model are the users' last training rows: at most one in ten is missed."""
    few = make_world(tmp_path / "data" / "few", n_users=n_users, n_items=n_users + 10, seed=3)
    learning = {"train_batch_size": 64, "learning_rate": 0.01} if n_users > 10 else {"learning_rate": 0.03}
    one = run(few, tmp_path, epochs=50, eval_step=0, **learning)
    rows = one._trained.rows.train.inter_feat
    last = {user: row for row, user in enumerate(rows["user_id"].tolist())}
    rows = rows[torch.tensor(list(last.values()))]
    best = one.model.full_sort_predict(rows)[:, 1:].argmax(dim=1) + 1
    assert (best == rows["item_id"]).float().mean() >= 0.9


def test_the_same_seed_gives_the_same_bits_with_a_stage_made_and_found_and_is_asked_again(world, tmp_path):
    one, other = (run(world, tmp_path, epochs=2, semantic_source="kmeans_id") for _ in range(2))
    assert len(list((tmp_path / "saved" / "stages").glob("semantic-codebook-*"))) == 1
    states = [dict(again.model.state_dict()) for again in (one, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    third = run(world, tmp_path, epochs=2, semantic_source="kmeans_id", hyper_clip=0.02)
    assert len(list((tmp_path / "saved" / "stages").glob("semantic-codebook-*"))) == 1
    assert torch.equal(third.model.codebook, one.model.codebook)
    again, here = asked_in_new_process(one, tmp_path, ["u1", "u9"], k=8)
    assert again == here


def test_the_order_of_rows_is_the_cpus_and_no_device_is_reseeded(world, tmp_path, monkeypatch):
    config = Config("SOLID", world.name, settings={**SETTINGS, "data_path": str(world.parent)})
    rows, devices, permutation = load_rows(config, few_shot=False), [], torch.randperm
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the accelerators are reseeded"))
    monkeypatch.setattr(
        torch, "randperm", lambda n, **options: devices.append(options.get("device")) or permutation(n, **options)
    )
    train_classes(config, np.arange(61) % 8, rows.train, None, torch.device("cpu"))
    assert devices == [None] * SETTINGS["semantic_epochs"]


def test_classes_come_from_a_text_encoder_of_titles(world, tmp_path):
    """The encoder knows seven words; items of one title have one class, and like titles are joined."""
    pytest.importorskip("sentence_transformers")
    folder = save_encoder(tmp_path / "encoder")
    model, _ = built(world, tmp_path, semantic_source="kmeans_llm", semantic_encoder=str(folder), n_semantic=5)
    titles = dict(line.split("\t")[:2] for line in (world / f"{world.name}.item").read_text().splitlines()[1:])
    names = [titles[token] for token in model_tokens(world)[1:]]
    vectors = load_text_encoder(find_text_encoder(str(folder)), device="cpu").encode(names)
    assert (
        model.class_of[1:].tolist()
        == classes_of_vectors(
            np.concatenate([np.zeros_like(vectors[:1]), vectors]), 5, stage_seed(2020, "solid", "classes")
        )[1:].tolist()
    )
    assert int(model.n_used) == len(set(model.class_of[1:].tolist())) <= 5


def test_classes_come_from_the_vectors_that_a_run_of_llmemb_left(world, tmp_path):
    """By outside ids: the other run may number items in another way, and lack one."""
    names = [f"i{number}" for number in range(60, 1, -1)]
    side = np.array([[1.0, 0.1 * (int(name[1:]) % 3)] if int(name[1:]) % 2 else [-1.0, 0.0] for name in names])
    (tmp_path / "llmemb").mkdir()
    write_item_vectors(tmp_path / "llmemb", ["[PAD]", *names], np.concatenate([np.zeros((1, 2)), side]))
    given = {"semantic_source": "kmeans_llm", "semantic_encoder": str(tmp_path / "llmemb"), "n_semantic": 2}
    model, _ = built(world, tmp_path, **given)
    tokens = model_tokens(world)
    of = {token: int(own) for token, own in zip(tokens[1:], model.class_of[1:].tolist(), strict=True)}
    odd, even = ({of[name] for name in names if name in of and int(name[1:]) % 2 == rest} for rest in (1, 0))
    assert len(odd) == len(even) == 1 and odd != even
    (tmp_path / "llmemb" / "item_vectors.npz").write_text("no archive")
    with refused("semantic_encoder", "file", "run LLMEmb again"):
        built(world, tmp_path / "other", **given)
    write_item_vectors(tmp_path / "llmemb", ["[PAD]", "x1"], np.ones((2, 2)))
    with refused("semantic_encoder", "data", "knows none of the items"):
        built(world, tmp_path / "other", **given)


@pytest.mark.slow
def test_true_categories_help_where_ids_are_rare(tmp_path):
    """An item is the target of four training rows; its category, of a hundred and fifty."""
    planted = ring_world(tmp_path / "data" / "ring")
    settings = {"epochs": 25, "learning_rate": 0.003, "train_batch_size": 128, "stopping_step": 6}
    settings |= {"topk": [40], "valid_metric": "Hit@40", "hidden_size": 32, "embedding_size": 32}
    settings |= {"hidden_dropout_prob": 0.5, "attn_dropout_prob": 0.5, "semantic_epochs": 10}
    found = {
        model: np.mean([run(planted, tmp_path, model, seed=seed, **settings).metrics["hit@40"] for seed in (1, 2)])
        for model in ("SASRec", "SOLID")
    }
    assert found["SOLID"] >= found["SASRec"] and found["SOLID"] > 0.3, found


def test_bad_settings_are_refused(world):
    for settings, key, kind in (
        ({"semantic_source": "kmeans"}, "semantic_source", "value"),
        ({"category_field": None}, "category_field", "missing"),
        ({"hidden_size": 32}, "embedding_size", "conflict"),
        ({"loss_type": "BPR"}, "loss_type", "conflict"),
        ({"solid_backbone": "NARM"}, "solid_backbone", "value"),
        ({"hyper_clip": -1}, "hyper_clip", "value"),
        ({"n_semantics": 4}, "n_semantics", "unknown"),
    ):
        with refused(key, kind):
            Config("SOLID", world.name, settings={**SETTINGS, **settings, "data_path": str(world.parent)})
