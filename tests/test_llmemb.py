"""LLMEmb through the command: stages, what serves without an LLM, the same again, head and tail, row vectors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recbole_llm
from recbole_llm.llm import item_tuning
from recbole_llm.recbole_checkpoints import load_checkpoint
from recbole_llm.settings.training import READERS
from tests.processes import forked_python
from tests.runs import Finished

WORDS = (
    *(
        "--LLMEmb.scft_steps=6",
        "--LLMEmb.scft_batch=8",
        "--LLMEmb.recommender_config={epochs: 1, train_batch_size: 64}",
    ),
    *("--LLMEmb.item_text_fields=[class, release_year]", "--category_field=class"),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llmemb") / "saved"


@pytest.fixture(scope="module")
def llm(llama: Path, shared: Path) -> Path:
    """An LLM that a test can take away."""
    return shutil.copytree(llama, shared.parent / "llm")


@pytest.fixture(scope="module")
def go(command: Any, shared: Path, llm: Path) -> Any:
    def go(models: str, *more: str, saved: Path = shared, **options: Any) -> Finished:
        done = command(models, f"--LLMEmb.llm_path={llm}", *WORDS, *more, saved=saved, **options)
        assert done.status == 0
        return done

    return go


@pytest.fixture(scope="module")
def table(go: Any) -> Finished:
    return go("SASRec,LLMEmb")


def test_it_stands_beside_sasrec_with_head_and_tail(table):
    for label in ("SASRec", "LLMEmb"):
        found = table.result(label).test
        assert {"ndcg_head@10", "ndcg_tail@10", "hit_head@10", "hit_tail@10"} <= set(found)
    assert table.result("SASRec").n_rows == table.result("LLMEmb").n_rows
    stages = table.json("LLMEmb", "stages.json")
    assert {"contrastive-tuning", "item-vectors", "auxiliary-SASRec", "alignment"} <= set(stages)
    folder = table.folders["LLMEmb"]
    assert (folder / "adapter" / "adapter_config.json").is_file() and (folder / "model.pth").is_file()


def test_vectors_are_frozen_and_every_item_has_one(table):
    kept = load_checkpoint(table.folders["LLMEmb"] / "model.pth", map_location="cpu")["state_dict"]
    vectors = np.load(table.stage("LLMEmb", "item-vectors") / "vectors.npy")
    assert np.array_equal(kept["item_embedding.vectors"].numpy(), vectors)
    assert not vectors[0].any() and vectors[1:].any(axis=1).all()


def test_the_folder_serves_in_a_new_process_without_any_llm(table, llm):
    folder = table.folders["LLMEmb"]
    run = recbole_llm.load_run(folder)
    mine = run.recommend(users=run.users[:3], k=4)[["user_id", "item_id"]].to_csv(index=False)
    assert run.metrics == pytest.approx({name: value for name, value in table.result("LLMEmb").test.items()})
    llm.rename(llm.with_name("away"))
    try:
        printed = forked_python(
            """
            import sys
            import transformers
            def refuse(*args, **kwargs): raise AssertionError("an LLM is loaded")
            transformers.AutoModelForCausalLM.from_pretrained = refuse
            import recbole_llm
            run = recbole_llm.load_run(sys.argv[1])
            print(run.recommend(users=run.users[:3], k=4)[["user_id", "item_id"]].to_csv(index=False))
            print(run.recommend([["i1", "i2"]], k=2)["title"].tolist())
            """,
            folder,
            cwd=folder.parent.parent,
        ).stdout
    finally:
        llm.with_name("away").rename(llm)
    assert mine.strip() in printed and "['" in printed


@pytest.mark.parametrize("backbone", [name for name in READERS if name != "SASRec"])
def test_backbones_share_the_tuning_and_the_vectors(go, table, backbone):
    other = go("LLMEmb", f"--rat_backbone={backbone}")
    mine, theirs = other.json("LLMEmb", "stages.json"), table.json("LLMEmb", "stages.json")
    assert mine["item-vectors"] == theirs["item-vectors"] and mine["alignment"] != theirs["alignment"]
    assert "Stage item-vectors: found" in other.log("LLMEmb")


def test_the_same_seed_gives_the_same_again_and_a_killed_tuning_goes_on(go, table, tmp_path, monkeypatch):
    def fail(self: Any, folder: Path) -> None:
        save(self, folder)
        raise KeyboardInterrupt

    save = item_tuning.ContrastiveTuning._save
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(item_tuning, "SAVED_EVERY", 2)
        patch.setattr(item_tuning.ContrastiveTuning, "_save", fail)
        go("LLMEmb", saved=tmp_path / "saved")
    again = go("LLMEmb", saved=tmp_path / "saved")
    assert "Resuming the contrastive tuning after step 2." in again.log("LLMEmb")
    assert again.ranks("LLMEmb") == table.ranks("LLMEmb")


def test_it_learns_a_small_world_by_heart(go):
    words = ("--epochs=20", "--stopping_step=100", "--LLMEmb.learning_rate=0.01", "--rat_alpha=0")
    done = go("LLMEmb", *words, "--rat_config={hidden_dropout_prob: 0, attn_dropout_prob: 0}")
    losses = [record["train_loss"] for record in done.json("LLMEmb", "history.json")]
    assert len(losses) == 20 and losses[-1] < 0.5 * losses[0]


def test_coresets_choose_by_its_vectors(command, go, table, llm, shared):
    words = ("--coreset=k_center", "--coreset_size=8", "--coreset_vectors=llmemb", "--epochs=1")
    scft = [word.replace("LLMEmb.", "") for word in WORDS]
    done = command("BIGRec", f"--llm_path={llm}", *scft, *words, saved=shared)
    assert done.status == 0
    assert done.json("BIGRec", "stages.json")["item-vectors"] == table.json("LLMEmb", "stages.json")["item-vectors"]
    vectors = np.load(table.stage("LLMEmb", "item-vectors") / "vectors.npy")
    rows = np.load(done.stage("BIGRec", "llmemb-vectors") / "values.npy")
    assert rows.shape[1] == vectors.shape[1] and len(rows) > 8
    singles = [row for row in rows if np.isclose(vectors[1:], row, atol=1e-6).all(axis=1).any()]
    assert singles  # the mean of a history of one item is that item's vector
